"""The scheduler that a pipeline of diffusers is sampled with: its own, or another with options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from distillkit.errors import UsageError
from distillkit.models.diffusers.published import PublishedConfig
from distillkit.reading import Missing, read_mapping
from distillkit.text import short

MOST_STEPS = 1_000_000
"""Training steps of a scheduler."""


def own_scheduler(folder: Path, name: str) -> Any:
    """The scheduler in a pipeline's folder, made of its configuration alone.

    Args:
        name: of its class, as model_index.json has it.

    Raises:
        UsageError: for a class that diffusers does not have, or where its configuration is missing.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    return _made(_class_of(name, str(path)), _configuration(path), {}, str(path))


def other_scheduler(asked: str, own: Any) -> Any:
    """A scheduler in the place of a pipeline's own.

    Args:
        asked: NAME,OPTION=VALUE,... on the configuration of the pipeline's, as `NAME.from_config` of diffusers takes
            it; or the path of a scheduler_config.json, or of its folder.
        own: the pipeline's; None where it has none.

    Raises:
        UsageError: for a class that diffusers does not have, an option that it does not take, or a scheduler of flow
            models in the place of one that is none, or the other way round.
    """
    found = _other(asked, own)
    if own is not None and is_of_flow(found) != is_of_flow(own):
        kinds = ("noise or its like", "flow models, which predict a velocity")
        raise UsageError(
            f"--scheduler {asked}: {type(found).__name__} is for {kinds[is_of_flow(found)]}, and the pipeline's own, "
            f"{type(own).__name__}, for {kinds[is_of_flow(own)]}"
        )
    return found


def is_of_flow(scheduler: Any) -> bool:
    """Whether a scheduler of diffusers steps through flow models. Those of diffusion models tell pipelines by how much
    to multiply the noise; of these, some take flow models where their options say so."""
    of_diffusion = hasattr(scheduler, "init_noise_sigma")
    return not of_diffusion or scheduler.config.get("prediction_type") == "flow_prediction"


def _other(asked: str, own: Any) -> Any:
    place, where = Path(asked).expanduser(), f"--scheduler {asked}"
    if place.suffix == ".json" or place.is_dir():
        place = place / "scheduler_config.json" if place.is_dir() else place
        config = _configuration(place)
        return _made(_class_of(config.get("_class_name"), str(place)), config, {}, str(place))
    name, *options = asked.split(",")
    kind, given = _class_of(name, where), _options(options)
    known = inspect.signature(kind.__init__).parameters
    if strange := [option for option in given if option not in known]:
        raise UsageError(
            f"--scheduler: {kind.__name__} of diffusers has no option {short(strange[0])}; it has "
            f"{', '.join(name for name in known if name not in ('self', 'kwargs'))}"
        )
    return _made(kind, {} if own is None else own.config, given, where)


def evaluated_steps(scheduler: Any, count: int, asked: PublishedConfig) -> list[float] | None:
    """The training steps that a network is evaluated at; None where the pipeline tells the scheduler more.

    Raises:
        UsageError: for timesteps, an eta, or a number of steps that the scheduler does not take.
    """
    kind, known = type(scheduler).__name__, inspect.signature(scheduler.set_timesteps).parameters
    if asked.timesteps and "timesteps" not in known:
        raise UsageError(f"--timesteps: {kind} of diffusers takes none; it takes a number of steps")
    if asked.eta is not None and "eta" not in inspect.signature(scheduler.step).parameters:
        raise UsageError(f"--eta: {kind} of diffusers takes none; DDIMScheduler and TCDScheduler do")
    if getattr(scheduler.config, "use_dynamic_shifting", False):
        return None
    try:
        if asked.timesteps:
            scheduler.set_timesteps(timesteps=list(asked.timesteps))
        else:
            scheduler.set_timesteps(count)
    except Exception as error:  # diffusers raises many kinds
        what = "timesteps" if asked.timesteps else "steps"
        raise UsageError(f"--{what}: {kind} of diffusers does not take them ({error})") from error
    return [round(float(t), 4) for t in scheduler.timesteps]


def _class_of(name: object, where: str) -> Any:
    """A scheduler of diffusers by the name of its class.

    Raises:
        UsageError: where it has none of that name.
    """
    import diffusers

    kind = getattr(diffusers, name.strip(), None) if isinstance(name, str) else None
    if not isinstance(kind, type) or not issubclass(kind, diffusers.SchedulerMixin):
        examples = "LCMScheduler, TCDScheduler, DDIMScheduler, EulerDiscreteScheduler"
        raise UsageError(f"{where}: diffusers has no scheduler {short(name)}; it has, among others, {examples}")
    return kind


def _configuration(path: Path) -> dict[str, Any]:
    try:
        config = read_mapping(path)
    except Missing as error:
        raise UsageError(f"{path} is missing") from error
    return config


def _made(kind: Any, config: Mapping[str, Any], options: Mapping[str, Any], where: str) -> Any:
    steps = {**config, **options}.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or not 1 <= steps <= MOST_STEPS:
        raise UsageError(f"{where}: num_train_timesteps {short(steps)}; from 1 to {MOST_STEPS:,}")
    try:
        return kind.from_config(config, **options)
    except Exception as error:  # diffusers raises many kinds
        raise UsageError(f"{where}: {kind.__name__} of diffusers cannot be made ({error})") from error


def _options(given: Sequence[str]) -> dict[str, Any]:
    """name=value pairs, the values as YAML reads them.

    Raises:
        UsageError: for another form.
    """
    found = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UsageError(f"--scheduler: {short(one)} is not OPTION=VALUE, such as timestep_spacing=trailing")
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError:
            read = value
        found[name.strip()] = read if isinstance(read, bool | int | float | str) or read is None else value
    return found
