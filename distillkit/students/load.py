"""Students read from disk: from their own folder, a run's or a checkpoint's, or weights that another starts from."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from distillkit.contracts.adapter import Base
from distillkit.contracts.denoiser import Denoiser, adapted_in
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher
from distillkit.errors import DistillkitError, UsageError
from distillkit.models.adapters import base_sha256, building_on
from distillkit.models.build import build_denoiser, built_light, check_kinds, described_weights, merged
from distillkit.models.diffusers.folder import COMPONENTS, network_prefix
from distillkit.models.diffusers.parts import beside, with_parts
from distillkit.models.diffusers.weights import read_weights as read_network
from distillkit.models.precision import in_dtype
from distillkit.models.store.folder import check_fit
from distillkit.models.store.resolve import resolve
from distillkit.progress import reporter_for
from distillkit.reading import read_json
from distillkit.registry import registry
from distillkit.students.artifact import DESCRIPTION, Student, stem_of
from distillkit.students.checkpoints import (
    PREFIX,
    STATE,
    Weights,
    from_run,
    images_seen,
    kept_checkpoints,
    read_checkpoint,
    split_selector,
)
from distillkit.students.consistency_pipeline import consistency_pipeline, read_consistency_pipeline
from distillkit.students.description import AdapterDescription, difference, read_description
from distillkit.tensors import read_tensors
from distillkit.weight_files import has_weights, read_weights


def load_student(
    path: str | Path, *, say: Callable[[str], None] | None = None, teacher: Teacher | str | Path | None = None
) -> Student:
    """Load a student: from its folder, a run's, or a checkpoint's; or a ConsistencyModelPipeline of diffusers, a folder
    or `hf:ORG/REPO`. Nothing is unpickled.

    `runs/x` is the finished student, or the newest checkpoint's moving average while the run is not finished.
    `runs/x@best`, `@latest` and `@12000` (a step) are the moving averages of those checkpoints; `@average` and
    `@student` are the newest checkpoint's moving average and its raw weights.

    Args:
        say: hears in one line what was taken in place of a finished student; a log warning by default.
        teacher: whose weights a student of adapters has beside its own: loaded, or by its name, folder or file; by
            default the one that the student names.

    Raises:
        UsageError: when there is no student, or a package that it needs is not installed; names it.
        DistillkitError: when its files are damaged or do not fit together.
    """
    if consistency_pipeline(path):
        return read_consistency_pipeline(path)
    return built(found_weights(path, say or logging.getLogger("distillkit").warning), teacher)


def built(weights: Weights, teacher: Teacher | str | Path | None = None) -> Student:
    """A student from its weights and description: network, sampler, conditioner and codec by what is installed.

    Args:
        teacher: as `load_student` takes it.

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
        denoiser = _denoiser(weights) if description.adapter is None else _beside(weights, description.adapter, teacher)
    except DistillkitError as error:
        raise type(error)(f"cannot load the student in {weights.folder}: {error}") from error
    generator = StudentGenerator(denoiser, sampler, description.shape)
    return Student(generator, conditioner, codec, description, weights.folder)


def _denoiser(weights: Weights) -> Denoiser:
    """The network with the weights that are all its own."""
    expected = described_weights(weights.description.network)
    if expected is not None:
        check_fit(expected, weights.state, weights.origin)
    denoiser = build_denoiser(weights.description.network)
    if expected is None:
        check_fit(denoiser.state_dict(), weights.state, weights.origin)
    denoiser.load_state_dict(weights.state)
    return denoiser


def _beside(weights: Weights, described: AdapterDescription, teacher: Teacher | str | Path | None) -> Denoiser:
    """The network on the teacher's weights, with the adapters.

    Raises:
        UsageError: when the teacher is not there; says how to name it.
        DistillkitError: when it is another than the student was trained beside, or the adapters do not fit.
    """
    if not isinstance(teacher, Teacher):
        name = str(teacher or described.teacher)
        try:
            teacher = resolve(name, described.pipeline).load(reporter_for())
        except DistillkitError as error:
            raise type(error)(
                f"it holds adapters beside the weights of its teacher {name}, which cannot be had ({error}). Put it "
                "back, or load the student by distillkit.load_student(FOLDER, teacher=NAME, FOLDER or a loaded one)"
            ) from error
    if (found := base_sha256(teacher)) != described.base_sha256:
        raise DistillkitError(
            f"its adapters were trained beside the weights with sha256 {described.base_sha256[:16]}..., and those of "
            f"{teacher.spec.name} have {found[:16]}...: it is another teacher"
        )
    if described.dtype != Base(teacher.start, found).dtype:
        teacher = _cast(teacher, described.dtype)
    with building_on(Base(teacher.start, found), described.layers):
        denoiser = built_light(weights.description.network)
    if adapted_in(denoiser) is None:
        raise DistillkitError(f"its network {weights.description.network.get('kind')} lacks weights of its teacher's")
    check_fit(denoiser.state_dict(), weights.state, weights.origin)
    denoiser.load_state_dict(weights.state, assign=True)
    return denoiser


def _cast(teacher: Teacher, dtype: str) -> Teacher:
    """A teacher whose weights are those of another in `dtype`, as they were when the adapters were trained.

    Raises:
        UsageError: for a teacher that is in less than float32 itself, or takes no such weights.
    """
    if (own := Base(teacher.start, "").dtype) != "float32":
        raise UsageError(f"the weights of {teacher.spec.name} are in {own}; give the teacher in float32")
    teacher = copy.copy(teacher)
    teacher.denoiser = copy.deepcopy(teacher.denoiser)
    return in_dtype(teacher, getattr(torch, dtype))


def found_weights(path: str | Path, say: Callable[[str], None]) -> Weights:
    """The weights that `load_student` loads, with what is known of them.

    Raises:
        UsageError, DistillkitError: as `load_student`.
    """
    if consistency_pipeline(path):
        student = read_consistency_pipeline(path)
        return Weights(dict(student.generator.denoiser.state_dict()), student.description, Path(path), str(path))
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
        saved = _saved(folder / "student")
        newest = next(kept_checkpoints(folder), None)
        if newest is None or (images_seen(newest[1]) or 0) <= saved.description.images_seen:
            return saved
        # The run goes on, longer than it was.
    elif not (folder / "checkpoints").is_dir():
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
    stem = stem_of(description)
    path = folder / f"{stem}.safetensors"
    network = next((name for name in COMPONENTS if (folder / name / "config.json").is_file()), None)
    if has_weights(folder, stem):
        tensors, found = read_weights(folder, stem)
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


def _require_the_same(described: AdapterDescription | None, like: Denoiser, origin: str) -> None:
    """Refuse adapters that are to start from anything but the same adapters beside the same weights.

    Raises:
        UsageError: saying what differs.
    """
    adapted = adapted_in(like)
    if adapted is None or adapted.base is None:
        return
    if described is None or described.base_sha256 != adapted.base.sha256:
        raise UsageError(
            f"the student is to train adapters beside the teacher's weights, and {origin} has others: leave "
            "--student-adapter out, or export that student merged, as a teacher of its own"
        )
    if described.layers != adapted.adapter:
        assert adapted.adapter is not None
        raise UsageError(
            f"the adapters in {origin} are a {described.layers.title} of {', '.join(described.layers.targets)}, and "
            f"those of this run a {adapted.adapter.title} of {', '.join(adapted.adapter.targets)}: ask for the same, "
            "or leave --student-adapter out"
        )


def initial_weights(
    path: str | Path, like: Denoiser, teacher: Teacher | None = None
) -> tuple[dict[str, Tensor], str, Path | None]:
    """The weights that another training's student starts from, by the names of its denoiser; where they come from; and
    the student's or checkpoint's folder, where there is one.

    Args:
        path: whatever `load_student` takes, or a safetensors file of a denoiser's or a student's weights.
        like: the network that they are for.
        teacher: at hand, beside whose weights a student of adapters may have been trained.

    Raises:
        UsageError: when there is nothing of the kind, or the network is another.
        DistillkitError: when it is damaged or not finite.
    """
    file, folder = Path(path).expanduser(), None
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
        state, origin, folder = weights.state, weights.origin, weights.folder
        if weights.description.adapter is not None and adapted_in(like) is None:
            beside = weights.description.adapter.base_sha256
            at_hand = teacher if teacher is not None and base_sha256(teacher) == beside else None
            state = merged(built(weights, at_hand).generator.denoiser).state_dict()
        else:
            _require_the_same(weights.description.adapter, like, origin)
    if strange := difference(like, state):
        raise UsageError(f"a student cannot start from {origin}, which is of another network: {strange} there")
    check_fit(like.state_dict(), state, origin)
    return state, origin, folder
