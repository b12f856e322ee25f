"""Samples of anything that generates: a student, a checkpoint, or a teacher by its own solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distillkit.contracts.codec import Content
from distillkit.contracts.random import SampleRNG
from distillkit.contracts.teacher import Teacher
from distillkit.errors import UsageError
from distillkit.jobs.context import Context
from distillkit.jobs.previews import POINTS
from distillkit.jobs.subjects import is_student, solver_steps, within_bounds
from distillkit.models.counting import count_evaluations
from distillkit.models.diffusers.folder import is_diffusers_folder
from distillkit.models.store.folder import is_teacher_folder
from distillkit.models.store.resolve import resolve
from distillkit.students.artifact import load_student


@dataclass(frozen=True)
class Made:
    """Decoded samples (B, ...) on the CPU, what they are, and network evaluations of each, counted."""

    decoded: Tensor
    content: Content
    nfe: float


def make_samples(
    name: str,
    count: int | None,
    context: Context,
    *,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    nfe: int | None = None,
    guidance: float = 1.0,
    batch: int = 256,
) -> Made:
    """Samples of what `name` stands for; sample i depends on (seed, i) and its condition alone, and a student and its
    teacher start from the same noise.

    Args:
        name: run, checkpoint or student; or a teacher.
        count: of samples; `default_count` by default.
        classes: numbers or names of classes, in turn; all in turn by default.
        nfe: network evaluations of a sample; its own number by default.
        guidance: weight of a teacher.

    Raises:
        UsageError: for a name that stands for neither, or options that do not fit it.
    """
    within_bounds(num=count, seed=seed, nfe=nfe, guidance=guidance)
    if not is_student(name):
        try:
            reference = resolve(name)
        except UsageError as error:
            raise UsageError(f"no student in {name}, and no teacher either: {error}") from error
        if (place := Path(name).expanduser()).is_dir() and not (is_teacher_folder(place) or is_diffusers_folder(place)):
            raise UsageError(f"no student in {name}, and no teacher either; name a run, a student or a teacher")
        teacher = reference.load(context.reporter, context.stopped).to(context.device)
        count = count or default_count(teacher.codec.content)
        return _of_teacher(teacher, count, seed, classes, nfe, guidance, batch, context)
    if guidance != 1.0:
        raise UsageError("--guidance is for teachers; a student has learnt in what it has")
    student = load_student(name, say=context.reporter.say).to(context.device)
    student = student if nfe is None else student.with_nfe(nfe)
    made = student(count or default_count(student.codec.content), seed=seed, classes=classes, batch=batch)
    return Made(made, student.codec.content, student.nfe)


def default_count(content: Content) -> int:
    """Samples that make a picture: of points it takes many to see their density."""
    return POINTS if content == "points" else 64


@torch.inference_mode()
def _of_teacher(
    teacher: Teacher, count: int, seed: int, classes: Sequence[str] | None, nfe: int | None, guidance: float,
    batch: int, context: Context,
) -> Made:  # fmt: skip
    spec, conditioner, rng = teacher.spec, teacher.conditioner, SampleRNG(seed)
    steps = spec.solver_steps if nfe is None else solver_steps(nfe, spec.solver, guidance)
    keys = conditioner.in_turn(range(count)) if classes is None else conditioner.typed_in_turn(classes, count)
    decoded = []
    with (
        count_evaluations(teacher.denoiser) as evaluations,
        context.reporter.task(f"sampling {spec.name}", count, "samples") as task,
    ):
        for start in range(0, count, batch):
            rows = range(start, min(start + batch, count))
            condition = conditioner.encode(keys[start : rows.stop].to(context.device))
            noise = rng.normal("sample", 0, rows, spec.shape).to(context.device)
            samples = teacher.sample(noise, condition, steps=steps, guidance=guidance)
            decoded.append(teacher.codec.decode(samples).cpu())
            task.advance(len(rows))
            if context.stop:
                raise context.interrupted("stopped; nothing was written")
        return Made(torch.cat(decoded), teacher.codec.content, evaluations() / count)
