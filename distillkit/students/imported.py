"""Students that others have trained and published as weights, as ordinary students."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch

from distillkit.contracts.sampler import OneStep, Sampler
from distillkit.contracts.schedule import Schedule
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.diffusion.samplers import RenoisingSampler
from distillkit.diffusion.schedules import EDMSchedule
from distillkit.errors import UsageError
from distillkit.files import sha256
from distillkit.models.diffusers import hub
from distillkit.models.original import Unsettled, WithoutNetwork
from distillkit.models.store.convert import read_original
from distillkit.models.store.folder import SPEC, denoiser_with, teacher_with
from distillkit.models.store.resolve import known_spec
from distillkit.names import name_from
from distillkit.students.artifact import Student
from distillkit.students.description import Imported, describe_student

METHOD, UNKNOWN = "published", "not recorded"
"""What stands in the place of a method and of a teacher that nobody has recorded."""
_LAYOUT = (
    "{} holds weights in the layout of another program than EDM's, which do not say all of their network, nor what a "
    "student of them predicts and under which noise: name its teacher by --teacher, where it is as its teacher's"
)


def convert_student(
    source: str | Path, levels: Sequence[float], *, teacher: TeacherSpec | str | Path | None = None, name: str = "",
    licence: str = "", say: Callable[[str], None] | None = None,
) -> Student:  # fmt: skip
    """The student in a file of EDM's network and its weights, or of the weights alone; what `distillkit students
    convert` makes. Nothing in it is executed.

    >>> student = convert_student("network-snapshot.pkl", [2.5], teacher="edm-cifar10-uncond")    # doctest: +SKIP
    >>> student.save("sid")                                                                       # doctest: +SKIP

    Args:
        source: a network pickle of EDM's or EDM2's, a `torch.save` file or a safetensors file; or
            `hf:ORG/REPO/FILE[@REVISION]`.
        levels: noise levels of its evaluations, sigma / alpha, descending; between them its result gets fresh noise.
            A file does not say them: SiD's students take 2.5, DMD2's 80.
        teacher: that it was distilled from, by name or by its facts: whose network the weights are for, where the file
            holds weights alone.
        name: of the student; the file's by default.
        licence: of the weights.
        say: hears what was read, left out and assumed, line by line; a log warning by default.

    Raises:
        UsageError: for levels that its network does not have, or weights alone without a teacher.
        DistillkitError: when the file is refused, or its weights do not fit its network.
    """
    known = teacher if isinstance(teacher, TeacherSpec) or teacher is None else known_spec(str(teacher), "--teacher")
    file = hub.file(str(source)) if hub.is_file(str(source)) else Path(source).expanduser()
    if file.is_dir():
        raise UsageError(
            f"{file} is a folder: name the file of weights in it. Students and pipelines of diffusers are sampled and "
            "measured as they are, without a conversion"
        )
    named, hears = known.name if known else UNKNOWN, say or logging.getLogger("distillkit").warning
    try:
        spec, state = read_original(file, name=named, like=known, expected=known, say=hears)
    except Unsettled as error:
        raise UsageError(_LAYOUT.format(file)) from error
    except WithoutNetwork as error:
        raise UsageError(_weights_alone(file)) from error
    denoiser = denoiser_with(spec, state, str(file))
    if known is None and not isinstance(denoiser.schedule, EDMSchedule):
        raise UsageError(_LAYOUT.format(file))
    facts = known or spec.model_copy(update={"licence": "", "source": ""})
    beside = teacher_with(facts.model_copy(update={"network": spec.network}), denoiser)
    generator = StudentGenerator(denoiser, _sampler(levels, denoiser.schedule), spec.shape)
    imported = Imported(
        name=name_from(name or file.stem), source=str(source) if hub.is_file(str(source)) else file.name,
        sha256=sha256(file), licence=licence,
    )  # fmt: skip
    return published_student(generator, beside, imported)


def _weights_alone(file: Path) -> str:
    """What to do with a student's weights without their network."""
    is_teachers = (file.parent / SPEC).is_file()
    whose = shlex.quote(str(file.parent)) if is_teachers else "edm-cifar10-cond, or a teacher folder"
    return (
        f"{file} holds weights but not the arguments of their network: name the teacher that the student was distilled "
        f"from, whose network they are for: --teacher {whose}"
    )


def published_student(generator: StudentGenerator, teacher: Teacher, imported: Imported) -> Student:
    """A generator that was trained elsewhere as a student; its evaluations are counted."""
    described = describe_student(generator, teacher, method=METHOD, method_package=UNKNOWN)
    described = described.model_copy(update={"imported": imported})
    return Student(generator, teacher.conditioner, teacher.codec, described)


def _sampler(ratios: Sequence[float], schedule: Schedule) -> Sampler:
    """One evaluation at one level, or several with fresh noise in between.

    Raises:
        UsageError: for levels that are not descending within the schedule's ends.
    """
    if not ratios:
        raise UsageError("--levels: say at which noise level the student is evaluated, such as 2.5 or 80")
    ends = schedule.ratio(torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)).tolist()
    if outside := [level for level in ratios if not ends[0] <= level <= ends[1]]:
        raise UsageError(f"--levels {outside[0]:g}: the network knows noise levels from {ends[0]:g} to {ends[1]:g}")
    if any(level <= following for level, following in pairwise(ratios)):
        raise UsageError(f"--levels {','.join(f'{level:g}' for level in ratios)}: must be descending")
    times = schedule.at(torch.tensor(list(ratios), dtype=torch.float64)).tolist()
    return OneStep(t=times[0]) if len(times) == 1 else RenoisingSampler(levels=tuple(times))
