"""Students read from disk: from their own folder, a run's or a checkpoint's, or weights that another starts from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.student import StudentGenerator
from distillkit.errors import DistillkitError, UsageError
from distillkit.models.build import build_denoiser, check_kinds, described_weights
from distillkit.models.diffusers.folder import COMPONENTS, network_prefix
from distillkit.models.diffusers.parts import beside, with_parts
from distillkit.models.diffusers.weights import read_weights as read_network
from distillkit.models.store.folder import check_fit
from distillkit.reading import read_json
from distillkit.registry import registry
from distillkit.students.artifact import DESCRIPTION, STEM, Student
from distillkit.students.checkpoints import PREFIX, STATE, Weights, from_run, read_checkpoint, split_selector
from distillkit.students.description import difference, read_description
from distillkit.tensors import read_tensors
from distillkit.weight_files import has_weights, read_weights


def load_student(path: str | Path, *, say: Callable[[str], None] | None = None) -> Student:
    """Load a student: from its folder, a run's, or a checkpoint's. Nothing is unpickled.

    `runs/x` is the finished student, or the newest checkpoint's moving average while the run is not finished.
    `runs/x@best`, `@latest` and `@12000` (a step) are the moving averages of those checkpoints; `@average` and
    `@student` are the newest checkpoint's moving average and its raw weights.

    Args:
        say: hears in one line what was taken in place of a finished student; a log warning by default.

    Raises:
        UsageError: when there is no student, or a package that it needs is not installed; names it.
        DistillkitError: when its files are damaged or do not fit together.
    """
    return built(found_weights(path, say or logging.getLogger("distillkit").warning))


def built(weights: Weights) -> Student:
    """A student from its weights and description: network, sampler, conditioner and codec by what is installed.

    Raises:
        UsageError: when a package that offers one of them is not installed; says which to install.
        DistillkitError: when they do not fit together, or weights are not finite.
    """
    known, description = registry(), weights.description
    try:
        sampler = known.build("samplers", description.sampler)
        conditioner = known.build("conditioners", description.conditioner)
        codec = known.build("codecs", description.codec)
        check_kinds(description.network, description.shape, conditioner, codec)
        expected = described_weights(description.network)
        if expected is not None:
            check_fit(expected, weights.state, weights.origin)
        denoiser = build_denoiser(description.network)
    except DistillkitError as error:
        raise type(error)(f"cannot load the student in {weights.folder}: {error}") from error
    if expected is None:
        check_fit(denoiser.state_dict(), weights.state, weights.origin)
    denoiser.load_state_dict(weights.state)
    generator = StudentGenerator(denoiser, sampler, description.shape)
    return Student(generator, conditioner, codec, description, weights.folder)


def found_weights(path: str | Path, say: Callable[[str], None]) -> Weights:
    """The weights that `load_student` loads, with what is known of them.

    Raises:
        UsageError, DistillkitError: as `load_student`.
    """
    folder, selector = split_selector(path)
    if (folder / DESCRIPTION).is_file():
        if selector:
            raise UsageError(f"{folder} is a student and has no checkpoints; leave @{selector} out or name the run")
        return _saved(folder)
    if (folder / STATE).is_file():
        if selector not in ("", "average", "student"):
            raise UsageError(f"{folder} is a checkpoint; @average and @student are what it has")
        return read_checkpoint(folder, selector or "average")
    if selector:
        if not folder.is_dir():
            raise UsageError(f"no student in {path}: the folder {folder} does not exist")
        return from_run(folder, selector, say)
    if (folder / "student" / DESCRIPTION).is_file():
        return _saved(folder / "student")
    if not (folder / "checkpoints").is_dir():
        what = "it is not there" if not folder.exists() else f"neither {DESCRIPTION} nor checkpoints are there"
        raise UsageError(f"no student in {path}: {what}; name the folder of a run, a student or a checkpoint")
    weights = from_run(folder, "latest", say)
    say(f"{folder} is not finished: taking {weights.origin}")
    return weights


def _saved(folder: Path) -> Weights:
    """The student in a folder: its weights in their own file, or in the network's folder of a diffusers pipeline."""
    description = read_description(read_json(folder / DESCRIPTION), str(folder / DESCRIPTION))
    conditioner, codec = (with_parts(part, beside(folder)) for part in (description.conditioner, description.codec))
    description = description.model_copy(update={"conditioner": conditioner, "codec": codec})
    path = folder / f"{STEM}.safetensors"
    network = next((name for name in COMPONENTS if (folder / name / "config.json").is_file()), None)
    if has_weights(folder, STEM):
        tensors, found = read_weights(folder, STEM)
    elif network:
        path = folder / network
        own, found, _ = read_network(path)
        tensors = {f"{network_prefix(network)}{name}": value for name, value in own.items()}
    else:
        raise DistillkitError(
            f"{folder} has a {DESCRIPTION} and no {path.name}: it was exported for another library (see its "
            "README.md), or its weights were removed"
        )
    if found == description.weights_sha256:
        return Weights(tensors, description, folder, str(path))
    raise DistillkitError(f"{path} does not match the sha256 recorded in {DESCRIPTION}: {found}")


def initial_weights(path: str | Path, like: Denoiser) -> tuple[dict[str, Tensor], str]:
    """The weights that another training's student starts from, by the names of its denoiser, and where they come from.

    Args:
        path: whatever `load_student` takes, or a safetensors file of a denoiser's or a student's weights.
        like: the network that they are for.

    Raises:
        UsageError: when there is nothing of the kind, or the network is another.
        DistillkitError: when it is damaged or not finite.
    """
    file = Path(path).expanduser()
    if file.is_file():
        if file.suffix != ".safetensors":
            raise UsageError(
                f"{file} is not a .safetensors file; a student starts from one, or from a student's folder"
            )
        state = read_tensors(file)
        if state and all(name.startswith(PREFIX) for name in state):
            state = {name.removeprefix(PREFIX): value for name, value in state.items()}
        origin = str(file)
    else:
        weights = found_weights(path, logging.getLogger("distillkit").warning)
        state, origin = weights.state, weights.origin
    if strange := difference(like, state):
        raise UsageError(f"a student cannot start from {origin}, which is of another network: {strange} there")
    check_fit(like.state_dict(), state, origin)
    return state, origin
