"""Samples of anything that generates: a student, a checkpoint, or a teacher by its own solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from distillkit.contracts.codec import Content
from distillkit.contracts.conditioner import Conditioner
from distillkit.contracts.random import SampleRNG
from distillkit.contracts.teacher import Teacher
from distillkit.diffusion.solvers import SOLVERS, SolverName
from distillkit.errors import UsageError
from distillkit.evaluation.pipeline_calls import Conditions, counted, latent_shape, network_of
from distillkit.evaluation.whole_pipeline import WholePipeline
from distillkit.jobs.context import Context
from distillkit.jobs.options import solver_steps, within_bounds
from distillkit.jobs.previews import POINTS
from distillkit.jobs.prompts import MOST_PROMPTS
from distillkit.jobs.published import Called, timed, whole_pipeline_of
from distillkit.jobs.subjects import is_student
from distillkit.models.counting import count_evaluations
from distillkit.models.diffusers.folder import is_diffusers_folder
from distillkit.models.diffusers.options import PLAIN, PipelineConfig
from distillkit.models.diffusers.published import PLAIN_SAMPLING, PublishedConfig
from distillkit.models.store.folder import is_teacher_folder
from distillkit.models.store.resolve import resolve
from distillkit.students.artifact import samples_at_once
from distillkit.students.load import load_student


@dataclass(frozen=True)
class Made:
    """Decoded samples (B, ...) on the CPU, what they are, network evaluations of each, counted, and a text for each."""

    decoded: Tensor
    content: Content
    nfe: float
    captions: list[str] = field(default_factory=list)


def make_samples(
    name: str,
    count: int | None,
    context: Context,
    *,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    prompts: Sequence[str] | None = None,
    nfe: int | None = None,
    steps: int | None = None,
    solver: str | None = None,
    guidance: float | None = None,
    negative: str | None = None,
    batch: int | None = None,
    pipeline: PipelineConfig = PLAIN,
    published: PublishedConfig | None = PLAIN_SAMPLING,
) -> Made:
    """Samples of what `name` stands for; sample i depends on (seed, i) and its condition alone, and a student and its
    teacher start from the same noise.

    Args:
        name: run, checkpoint or student; or a teacher.
        count: of samples; one for each prompt (`MOST_PROMPTS` at most) or `default_count` by default.
        classes: numbers or names of classes, in turn; all in turn by default.
        prompts: in turn, for models of text.
        nfe: network evaluations of a sample; its own number by default.
        steps: of a teacher's solver; of a student the same as `nfe`; of a whole pipeline of diffusers, by its own
            scheduler, where no solver is named. Its own by default.
        solver: of a teacher; its own by default.
        guidance: weight of a teacher, 1 by default; or of a student whose network takes one, its own by default.
        negative: text that a teacher is guided away from instead of nothing.
        batch: samples in one pass; by their size by default.
        pipeline: what is asked of a teacher's pipeline.
        published: how a pipeline that is sampled by a scheduler is put together and called; None where pipelines are
            sampled as teachers, whatever is asked for.

    Raises:
        UsageError: for a name that stands for neither, or options that do not fit it.
    """
    within_bounds(num=count, seed=seed, nfe=nfe, steps=steps, guidance=guidance)
    if classes is not None and prompts is not None:
        raise UsageError("--labels and --prompt are two ways to say one thing: give one of them")
    if solver is not None and solver not in SOLVERS:
        raise UsageError(f"--solver {solver}: {', '.join(SOLVERS)}")
    asked = _Asked(
        count, seed, classes, prompts, nfe, steps, cast("SolverName | None", solver), guidance, negative, batch
    )
    if not is_student(name):
        try:
            resolve(name)
        except UsageError as error:
            raise UsageError(f"no student in {name}, and no teacher either: {error}") from error
        if (place := Path(name).expanduser()).is_dir() and not (is_teacher_folder(place) or is_diffusers_folder(place)):
            raise UsageError(f"no student in {name}, and no teacher either; name a run, a student or a teacher")
        pipeline.require_guidance(asked.weight)
        reference = resolve(name, pipeline)
        called = Called(steps, asked.weight, solver, "fp32", pipeline, published or PLAIN_SAMPLING)
        if published is not None and (whole := whole_pipeline_of(reference, called, context)):
            return _of_pipeline(whole, asked, context)
        return _of_teacher(reference.load(context.reporter, context.stopped).to(context.device), asked, context)
    pipeline.refuse_for(f"{name} is a student, which keeps what it was trained with")
    for option in ("solver", "negative"):
        if getattr(asked, option) is not None:
            raise UsageError(f"--{option} is for teachers; a student has a sampler of its own")
    if None not in (steps, nfe):
        raise UsageError("--steps and --nfe say the same of a student twice: leave one out")
    student = load_student(name, say=context.reporter.say).to(context.device)
    student = student if guidance is None else student.with_guidance(guidance, context.reporter.say)
    student = timed(student, published or PLAIN_SAMPLING, steps if nfe is None else nfe)
    evaluations = steps if nfe is None else nfe
    student = student if evaluations in (None, student.nfe) else student.with_nfe(evaluations)
    keys = asked.keys(student.conditioner, student.codec.content)
    typed = {"classes": classes} if prompts is None else {"prompts": prompts[: len(keys)]}
    made = student(len(keys), seed=seed, batch=batch, **typed)
    return Made(made, student.codec.content, student.nfe, student.conditioner.captions(keys))


def default_count(content: Content) -> int:
    """Samples that make a picture: of points it takes many to see their density."""
    return POINTS if content == "points" else 64


@dataclass(frozen=True)
class _Asked:
    """What `make_samples` was asked for."""

    count: int | None
    seed: int
    classes: Sequence[str] | None
    prompts: Sequence[str] | None
    nfe: int | None
    steps: int | None
    solver: SolverName | None
    guidance: float | None
    negative: str | None
    batch: int | None

    @property
    def weight(self) -> float:
        """The guidance weight of a teacher or a pipeline."""
        return 1.0 if self.guidance is None else self.guidance

    def keys(self, conditioner: Conditioner, content: Content) -> Tensor:
        """Keys (count,) of the samples.

        Raises:
            UsageError: for what is no condition of the model, or where it has none to show.
        """
        if self.prompts is not None:
            count = self.count or min(len(self.prompts), MOST_PROMPTS)
            return conditioner.typed_in_turn(self.prompts[:count], count)
        count = self.count or default_count(content)
        if self.classes is not None:
            return conditioner.typed_in_turn(self.classes, count)
        if (
            conditioner.lacks
            and conditioner.count == 1
            and conditioner.names(torch.zeros(1, dtype=torch.int64)) == [""]
        ):
            raise UsageError('say what the samples are to show: --prompt "a text", or --prompts FILE')
        return conditioner.in_turn(range(count))


@torch.inference_mode()
def _of_teacher(teacher: Teacher, asked: _Asked, context: Context) -> Made:
    spec, conditioner, rng = teacher.spec, teacher.conditioner, SampleRNG(asked.seed)
    solver, guidance = asked.solver or spec.solver, asked.weight
    if asked.nfe is not None and asked.steps is not None:
        raise UsageError("--nfe and --steps both say how long to sample: give one of them")
    steps = asked.steps or (spec.solver_steps if asked.nfe is None else solver_steps(asked.nfe, solver, guidance))
    if asked.negative is not None and teacher.guide is not None:
        raise UsageError(
            f"--negative is what guidance leads away from, and so is --guide-with {teacher.guide.spec.name}: leave one "
            "of them out"
        )
    if asked.negative is not None and guidance == 1.0:
        raise UsageError("--negative is what guidance leads away from: give --guidance, such as 7.5, as well")
    keys = asked.keys(conditioner, teacher.codec.content)
    away = None if asked.negative is None else conditioner.parse([asked.negative])
    count, decoded = len(keys), []
    batch = asked.batch or samples_at_once(teacher.codec.decoded_shape(spec.shape))
    with (
        count_evaluations(*teacher.denoisers) as evaluations,
        context.reporter.task(f"sampling {spec.name}", count, "samples") as task,
    ):
        for start in range(0, count, batch):
            rows = range(start, min(start + batch, count))
            condition = conditioner.encode(keys[start : rows.stop].to(context.device)).to(context.device)
            negative = None if away is None else conditioner.encode(away.expand(len(rows))).to(context.device)
            noise = rng.normal("sample", 0, rows, spec.shape).to(context.device)
            samples = teacher.sample(noise, condition, steps=steps, solver=solver, guidance=guidance, negative=negative)
            decoded.append(teacher.codec.decode(samples).cpu())
            task.advance(len(rows))
            if context.stop:
                raise context.interrupted("stopped; nothing was written")
        return Made(torch.cat(decoded), teacher.codec.content, evaluations() / count, conditioner.captions(keys))


@torch.inference_mode()
def _of_pipeline(whole: WholePipeline, asked: _Asked, context: Context) -> Made:
    """Pictures of a pipeline by its own scheduler, from the noise that a teacher's samples start from."""
    for option in ("nfe", "negative"):
        if getattr(asked, option) is not None:
            raise UsageError(
                f"--{option}: a pipeline that is sampled by its own scheduler takes --steps and --guidance"
            )
    pipeline, rng = whole.pipeline(context.device), SampleRNG(asked.seed)
    prompts, classes = asked.prompts, asked.classes
    wanted = Conditions.of(pipeline, prompts or (), whole.subject.name)
    if classes is not None:
        wanted = wanted.only(classes)
    count = asked.count or (min(len(prompts), MOST_PROMPTS) if prompts else default_count("images"))
    shape, decoded = latent_shape(pipeline, whole.size), []
    batch = asked.batch or samples_at_once((shape[0], *(8 * side for side in shape[1:])))
    with (
        counted(network_of(pipeline)) as evaluations,
        context.reporter.task(f"sampling {whole.subject.name}", count, "samples") as task,
    ):
        for start in range(0, count, batch):
            rows = range(start, min(start + batch, count))
            seeds = rng.integers("renoise", 0, rows, 2**53).tolist()
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            decoded.append(whole.images(pipeline, wanted.at(rows), rng.normal("sample", 0, rows, shape), generators))
            task.advance(len(rows))
            if context.stop:
                raise context.interrupted("stopped; nothing was written")
        captions = [wanted.caption(index) for index in range(count)]
        return Made(torch.cat(decoded), "images", evaluations() / count, captions)
