"""Students of diffusers pipelines as plain pipelines of diffusers: nothing of ours is needed to use them."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save

from distillkit.contracts.conditioner import ClassLabels
from distillkit.errors import UsageError
from distillkit.files import sha256, write_bytes, write_json
from distillkit.models.diffusers import hub
from distillkit.models.diffusers.folder import COMPONENTS
from distillkit.models.diffusers.parts import HERE, PipelineParts, parts_in, with_parts
from distillkit.models.diffusers.weights import Found, chosen, read_weights, weights_sha256
from distillkit.models.prompts import Prompts
from distillkit.reading import read_mapping
from distillkit.registry import registry
from distillkit.students.artifact import DESCRIPTION, Student
from distillkit.students.card import example_prompt
from distillkit.students.schedulers import Scheduler, scheduler_of
from distillkit.weight_files import SHARD_BYTES

PLACE = "path/to/this/folder"
NOTE = """The number of steps and the guidance are part of the student: the pipeline's own defaults are its teacher's,
and give noise or a picture that is overdone."""
NOTE_FREE = """The number of steps is part of the student: the pipeline's own default is its teacher's, and gives noise.
The guidance is an input of the network: any weight that it was trained with (settings in student.json) will do."""


def parts_of(student: Student) -> list[PipelineParts]:
    """The parts of a diffusers pipeline that a student uses: its text encoders, its autoencoder."""
    return [*parts_in(student.description.conditioner), *parts_in(student.description.codec)]


def parts_on_this_machine(student: Student) -> str:
    """The folder from which a student takes such parts; "" where they are on the hub, or come with a package."""
    sources = (parts.source for parts in parts_of(student))
    return next((s for s in sources if not s.startswith(hub.PREFIX) and not comes_along(s)), "")


def comes_along(source: str) -> bool:
    """Whether a pipeline comes with a Python package."""
    return source in registry().named("teachers")


def write_plain_pipeline(student: Student, folder: Path, *, self_contained: bool = False) -> str:
    """A pipeline's folder: the trained network, the scheduler that takes the student's steps, and student.json, from
    which `load_student` loads the same.

    Args:
        self_contained: with copies of the parts that were not trained. Those of a pipeline that comes with a Python
            package are always copied, as diffusers does not know where that lies.

    Returns:
        How it is used, for the card.

    Raises:
        UsageError: for a sampler or a network that no pipeline of diffusers has, or parts that are not there.
        DistillkitError: when a part is another than the one that the student was made with.
    """
    import diffusers

    used = parts_of(student)
    source = used[0]
    component, network = network_of(student)
    index = read_mapping(source.folder / "model_index.json")
    scheduler = scheduler_of(student.generator)
    call = pipeline_call(student, pipeline_class(index, source), scheduler)
    network.save_pretrained(folder / component, max_shard_size=SHARD_BYTES)
    plain: Any = getattr(diffusers, scheduler.name)(**scheduler.config)
    plain.save_pretrained(folder / "scheduler")
    components = {file.partition("/")[0] for parts in used for file in parts.sha256}
    write_json(folder / "model_index.json", _index(index, scheduler, {component, *components}))

    copied = self_contained or comes_along(source.source)
    description = student.description.model_copy(update={"weights_sha256": weights_sha256(folder / component)})
    if copied:
        conditioner, codec = (
            with_parts(part, lambda parts: _copied(parts, folder))
            for part in (description.conditioner, description.codec)
        )
        description = description.model_copy(update={"conditioner": conditioner, "codec": codec})
    write_json(folder / DESCRIPTION, description.model_dump(mode="json"))
    note = note_of(student)
    return _usage(call, None if copied else source, component, type(network).__name__, scheduler.name, note)


def network_of(student: Student) -> tuple[str, Any]:
    """The trained network by the name of its component.

    Raises:
        UsageError: for a network that is not diffusers'.
    """
    from diffusers import ModelMixin

    denoiser: Any = student.generator.denoiser
    for component in COMPONENTS:
        if isinstance(network := getattr(getattr(denoiser, "model", None), component, None), ModelMixin):
            return component, network
    raise UsageError(
        f"the student's network {student.description.network.get('kind')} is not one of diffusers', so no pipeline "
        "holds it. distillkit.load_student samples it"
    )


def pipeline_class(index: Mapping[str, Any], source: PipelineParts) -> Any:
    """The class of the pipeline that the student's teacher is.

    Raises:
        UsageError: for one that diffusers does not have.
    """
    import diffusers

    name = index.get("_class_name")
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not isinstance(found, type) or not issubclass(found, diffusers.DiffusionPipeline):
        raise UsageError(f"the pipeline {source.source} is a {name}, which diffusers does not have")
    return found


def _index(index: Mapping[str, Any], scheduler: Scheduler, kept: Collection[str]) -> dict[str, Any]:
    """model_index.json of the teacher's pipeline with the components that are used, and none in the others' places."""

    def entry(name: str, value: Any) -> Any:
        if not (isinstance(value, list) and len(value) == 2) or name.startswith("_"):
            return value
        return ["diffusers", scheduler.name] if name == "scheduler" else value if name in kept else [None, None]

    changed = {name: entry(name, value) for name, value in index.items() if name != "_name_or_path"}
    return changed | ({"requires_safety_checker": False} if "requires_safety_checker" in changed else {})


def _copied(parts: PipelineParts, folder: Path) -> PipelineParts:
    """Copies the files of components into a pipeline's folder, weights under the names that diffusers looks for first.

    Raises:
        UsageError, DistillkitError: when one is missing, or another than was recorded.
    """
    found: dict[str, str] = {}
    for component in sorted({file.partition("/")[0] for file in parts.sha256}):
        place, target = parts.component(component), folder / component
        target.mkdir(exist_ok=True)
        names = [file.partition("/")[2] for file in parts.sha256 if file.startswith(f"{component}/")]
        weights = chosen(names)
        held = set(weights.among(names)) if weights else set()
        if weights and any(".bin" in name for name in held):  # a pickle, which others would execute
            name = "model.safetensors" if "pytorch_model.bin" in held else "diffusion_pytorch_model.safetensors"
            write_bytes(target / name, save(read_weights(place, among=names)[0], metadata={"format": "pt"}))
        else:
            for name in held:
                shutil.copyfile(place / name, target / _plain(name, weights))
        for name in set(names) - held:
            shutil.copyfile(place / name, target / name)
        found |= {f"{component}/{path.name}": sha256(path) for path in sorted(target.iterdir())}
    return PipelineParts(source=HERE, sha256=found)


def _plain(name: str, weights: Found | None) -> str:
    """A weight file's name without its variant; shards are found by their index, whatever they are called."""
    if weights is None or not weights.variant:
        return name
    if name == weights.index:
        return name.replace(f".{weights.variant}.json", ".json")
    return name if weights.index else name.replace(f".{weights.variant}.", ".")


def pipeline_call(student: Student, pipeline: Any, scheduler: Scheduler) -> dict[str, Any]:
    """What a call of the pipeline must say, its own defaults being those of the teacher: 50 steps with guidance 7.5.

    Raises:
        UsageError: for a pipeline that does not take the student's steps.
    """
    known, conditioner = inspect.signature(pipeline.__call__).parameters, student.conditioner
    call: dict[str, Any] = {}
    if isinstance(conditioner, Prompts) and "prompt" in known:
        call["prompt"] = example_prompt(conditioner)
    elif isinstance(conditioner, ClassLabels) and "class_labels" in known:
        call["class_labels"] = [0]
    else:
        raise UsageError(
            f"a {pipeline.__name__} does not take what this student is conditioned on ({conditioner.summary()})"
        )
    [(name, grid)] = scheduler.grid.items() or [("", ())]
    own = _own_grid(scheduler) in (None, list(grid))
    if name in known and (scheduler.steps > 1 or not own):
        call[name] = list(grid)
    elif own:
        call["num_inference_steps"] = scheduler.steps
    else:
        raise UsageError(f"a {pipeline.__name__} does not take the student's steps {list(grid)}")
    if "guidance_scale" in known:
        # Where it is an input of the network, it has the weight that the student is sampled with; else it is learnt in.
        embedded = getattr(conditioner.encoder, "guidance", None) if isinstance(conditioner, Prompts) else None
        asked = student.generator.sampler.input_guidance
        call["guidance_scale"] = next((float(weight) for weight in (asked, embedded) if weight is not None), 1.0)
    _, height, width = student.codec.decoded_shape(student.generator.shape)
    side: Any = getattr(network_of(student)[1].config, "sample_size", None)
    sides = [side, side] if isinstance(side, int) else side
    if "height" in known and sides != list(student.generator.shape[1:]):
        call |= {"height": height, "width": width}
    if "use_resolution_binning" in known:
        call["use_resolution_binning"] = False
    return call


def _own_grid(scheduler: Scheduler) -> list[float] | None:
    """The steps that a scheduler takes when it is given their number; None where it takes nothing else."""
    import diffusers

    if not scheduler.grid:
        return None
    made: Any = getattr(diffusers, scheduler.name)(**scheduler.config)
    made.set_timesteps(scheduler.steps)
    return made.timesteps.tolist() if "timesteps" in scheduler.grid else made.sigmas[:-1].tolist()


def _usage(
    call: Mapping[str, Any], source: PipelineParts | None, component: str, network: str, scheduler: str, note: str
) -> str:
    """A snippet that makes one image.

    Args:
        source: where the parts are that were not trained; None where they are in the folder.
        note: what to know of the call's arguments.
    """
    if source is None:
        load = f'pipeline = DiffusionPipeline.from_pretrained("{PLACE}")'
        names: Iterable[str] = ("DiffusionPipeline",)
    else:
        names = sorted(("DiffusionPipeline", network, scheduler))
        load = f"""folder = "{PLACE}"
pipeline = DiffusionPipeline.from_pretrained(
    {from_where(source)},
    {component}={network}.from_pretrained(folder, subfolder="{component}"),
    scheduler={scheduler}.from_pretrained(folder, subfolder="scheduler"),
)"""
    return f"""```python
from diffusers import {", ".join(names)}

{load}
image = pipeline({for_people(call)}).images[0]
```

{note}"""


def from_where(source: PipelineParts) -> str:
    """The arguments by which `from_pretrained` loads the teacher's pipeline."""
    if not source.source.startswith(hub.PREFIX):
        return repr(source.source)
    repository, revision = hub.parts(source.source)
    return f'"{repository}", revision={revision!r}' if revision else f'"{repository}"'


def for_people(call: Mapping[str, Any]) -> str:
    """The arguments of a call in two lines, the first in the first."""
    written = [*_written(call)]
    return f"\n    {written[0]},\n    {', '.join(written[1:])},\n"


def note_of(student: Student) -> str:
    """What to know of a call's arguments."""
    return NOTE if student.generator.sampler.input_guidance is None else NOTE_FREE


def _written(call: Mapping[str, Any]) -> Iterable[str]:
    for name, value in call.items():
        yield repr(value) if name == "prompt" else f"{name}={value!r}"
