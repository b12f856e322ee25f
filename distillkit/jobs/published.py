"""Published few-step models: pipelines of diffusers that are called as they are, and students at their timesteps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distillkit.diffusion.solvers import SOLVERS
from distillkit.dtypes import DTYPES
from distillkit.errors import UsageError
from distillkit.evaluation.whole_pipeline import WholePipeline, whole_pipeline
from distillkit.jobs.context import Context
from distillkit.jobs.options import EvaluationOptions
from distillkit.models.diffusers import hub
from distillkit.models.diffusers.options import PLAIN, PipelineConfig
from distillkit.models.diffusers.published import PLAIN_SAMPLING, PublishedConfig
from distillkit.models.store.reference import Folder, Reference, Repository
from distillkit.students.artifact import Student
from distillkit.students.consistency_pipeline import at_timesteps


@dataclass(frozen=True)
class Called:
    """How a pipeline of diffusers is to be called, where it is to be called at all and not sampled as a teacher."""

    steps: int | None
    guidance: float
    solver: str | None = None
    precision: str = "fp32"
    pipeline: PipelineConfig = PLAIN
    published: PublishedConfig = PLAIN_SAMPLING


def called_by(options: EvaluationOptions) -> Called:
    """How `distillkit evaluate` was asked to call a pipeline."""
    return Called(options.steps, options.weight, options.solver, options.precision, options.pipeline, options.published)


def whole_pipeline_of(reference: Reference, called: Called, context: Context) -> WholePipeline | None:
    """A pipeline of diffusers with its own scheduler, which a number of steps without a solver asks for; None where a
    teacher is.

    Raises:
        UsageError: for options of a pipeline where there is none.
        UsageError, DistillkitError: as `whole_pipeline`.
    """
    published = called.published
    if called.solver is not None or (called.steps is None and not published.options):
        published.refuse_for("--solver samples it as a teacher: leave --solver out")
        return None
    plain, asked = reference.unguided, called.pipeline
    place: Path | None = plain.path if isinstance(plain, Folder) else None
    if isinstance(plain, Repository):
        place = hub.snapshot(plain.name, dtype=DTYPES[called.precision])
    if place is None or not (place / "model_index.json").is_file():
        published.refuse_for(f"{reference.name} is none")
        return None
    title = "" if reference.name == str(place) else reference.name.removeprefix(hub.PREFIX)
    if asked.guide_with is not None:
        raise UsageError(
            f"{asked.options[-1]}: with --steps alone {reference.name} is sampled by its own pipeline, which no other "
            f"network guides; add --solver {'|'.join(SOLVERS)} to sample it as a teacher"
        )
    if asked.embedded_guidance is not None:
        raise UsageError(f"{asked.options[-1]}: a pipeline that is sampled by its own scheduler takes it as --guidance")
    pipeline = whole_pipeline(
        place, called.steps, called.guidance, precision=called.precision, name=title, size=asked.sides,
        published=published,
    )  # fmt: skip
    context.reporter.say(
        f"{title or place.name}: {pipeline.summary}; --solver {'|'.join(SOLVERS)} samples it as a teacher"
    )
    return pipeline


def downloaded(name: str) -> bool:
    """Whether a repository or a file of the hub is in its cache."""
    if not hub.is_file(name):
        return hub.cached(name) is not None
    from huggingface_hub import try_to_load_from_cache

    repository, path, revision = hub.parts_of_file(name)
    return isinstance(try_to_load_from_cache(repository, path, revision=revision), str)


def timed(student: Student, published: PublishedConfig, count: object = None) -> Student:
    """A student at the timesteps that were asked for, where its grid has some; itself where none were.

    Args:
        count: of its evaluations, where one was asked for as well.

    Raises:
        UsageError: for a student without such a grid, or options of a pipeline.
    """
    published.refuse_for("a student is sampled by its own sampler", but=("timesteps",))
    if not published.timesteps:
        return student
    if count is not None:
        raise UsageError("--timesteps say how many evaluations there are: leave --steps and --nfe out")
    return at_timesteps(student, published.timesteps)
