"""Folders of diffusers' ConsistencyModelPipeline as students, which they are: their sampler is Song et al.'s
(2023, arXiv 2303.01469, Alg. 1), and their denoiser has EDM's preconditioning with its boundary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import TeacherSpec
from distillkit.diffusion.boundaries import KarrasBoundary
from distillkit.diffusion.samplers import ConsistencySampler
from distillkit.diffusion.schedules import EDMSchedule
from distillkit.errors import UsageError
from distillkit.models.diffusers import hub
from distillkit.models.diffusers.family import Pipeline
from distillkit.models.diffusers.folder import folder_name, pipeline_at, source_of
from distillkit.models.diffusers.unet2d import described_as
from distillkit.models.diffusers.weights import read_weights
from distillkit.models.store.folder import denoiser_with, teacher_with
from distillkit.names import name_from
from distillkit.reading import Unreadable, first_problem, read_mapping
from distillkit.registry import registry
from distillkit.students.artifact import Student
from distillkit.students.description import Imported
from distillkit.students.imported import UNKNOWN, published_student
from distillkit.text import short

PIPELINE, SCHEDULER, NETWORK = "ConsistencyModelPipeline", "CMStochasticIterativeScheduler", "UNet2DModel"
TIMES = 1000.0
"""Its network takes EDM's ln(sigma) / 4 in thousandths."""


class SchedulerConfig(BaseModel):
    """scheduler_config.json, with the scheduler's own defaults."""

    model_config = ConfigDict(extra="ignore")

    num_train_timesteps: int = Field(40, ge=2, le=1_000_000)
    sigma_min: float = Field(0.002, ge=1e-9, le=1e9)
    sigma_max: float = Field(80.0, ge=1e-9, le=1e9)
    sigma_data: float = Field(0.5, ge=1e-6, le=1e6)
    s_noise: float = Field(1.0, ge=1.0, le=1.0)
    rho: float = Field(7.0, ge=0.1, le=100)
    clip_denoised: bool = True


def consistency_pipeline(name: str | Path) -> Path | None:
    """The folder of a ConsistencyModelPipeline, of `hf:ORG/REPO` what describes it; None where a name is that of
    something else.

    Raises:
        DistillkitError: when a repository of the hub cannot be had.
    """
    text = str(name)
    if text.startswith(hub.PREFIX):
        folder = None if hub.is_file(text) else hub.snapshot(text, weights=False)
    else:
        folder = Path(name).expanduser()
    index = folder / "model_index.json" if folder else None
    if folder is None or index is None or not index.is_file():
        return None
    try:
        return folder if read_mapping(index).get("_class_name") == PIPELINE else None
    except Unreadable:
        return None


def read_consistency_pipeline(name: str | Path) -> Student:
    """A ConsistencyModelPipeline as the student that it is, sampled in one evaluation from its largest noise level.

    Args:
        name: its folder, or `hf:ORG/REPO[@REVISION]`.

    Raises:
        UsageError: for a network or a scheduler of another class, or an option that is not followed.
        DistillkitError: when its files are damaged or do not fit, or cannot be had.
    """
    folder = hub.snapshot(str(name)) if str(name).startswith(hub.PREFIX) else Path(name).expanduser()
    pipeline = pipeline_at(folder)
    if (kinds := {pipeline.class_of("unet"), pipeline.config.get("_class_name")}) != {NETWORK}:
        raise UsageError(f"{folder}: its network is a {short(sorted(map(str, kinds - {NETWORK}))[0])}, not a {NETWORK}")
    config, schedule = _noise(pipeline)
    found = described_as(
        pipeline, schedule=schedule.model_dump(mode="json"), prediction="epsilon", sigma_data=config.sigma_data,
        scale=TIMES,
    )  # fmt: skip
    tensors, digest, _ = read_weights(pipeline.network)
    known = registry()
    spec = TeacherSpec(
        name=UNKNOWN, shape=found.shape, network=dict(found.network),
        conditioner=known.describe("conditioners", found.conditioner), codec=known.describe("codecs", found.codec),
    )  # fmt: skip
    state = {f"{found.prefix}{key}": value for key, value in tensors.items()}
    denoiser = denoiser_with(spec, state, str(pipeline.network))
    sampler = ConsistencySampler(
        levels=(schedule.t_max,), boundary=KarrasBoundary(sigma_data=config.sigma_data), clip=config.clip_denoised,
        points=config.num_train_timesteps,
    )  # fmt: skip
    generator = StudentGenerator(denoiser, sampler, found.shape)
    imported = Imported(name=name_from(folder_name(folder)), source=source_of(folder), sha256=digest)
    student = published_student(generator, teacher_with(spec, denoiser), imported)
    student.description = student.description.model_copy(update={"weights_sha256": digest})
    return student


def at_timesteps(student: Student, timesteps: Sequence[int]) -> Student:
    """A student of a trained grid, sampled at what diffusers calls `timesteps`: [22, 0] is its grid's first point and
    its 22nd. Evaluation k of n is at point timesteps[n - 1 - k] of the grid, the largest noise level being point 0.

    Raises:
        UsageError: for a student without such a grid, or timesteps that are not descending on it to 0, where the noise
            is that it starts from.
    """
    sampler, schedule = student.generator.sampler, student.generator.schedule
    if not isinstance(sampler, ConsistencySampler) or sampler.points is None:
        raise UsageError("--timesteps is for pipelines of diffusers; this student's levels are its own")
    falling = all(a > b for a, b in pairwise(timesteps))
    if not timesteps or not falling or timesteps[-1] != 0 or timesteps[0] >= sampler.points:
        listed = ",".join(map(str, timesteps))
        raise UsageError(
            f"--timesteps {listed}: this student takes descending ones below {sampler.points} that end at 0, its "
            "largest noise level"
        )
    grid = schedule.grid(sampler.points).tolist()
    return student.with_sampler(sampler.with_levels([grid[index] for index in reversed(timesteps)]))


def _noise(pipeline: Pipeline) -> tuple[SchedulerConfig, EDMSchedule]:
    values: Mapping[str, object] = pipeline.scheduler
    if (kind := values.get("_class_name")) != SCHEDULER:
        raise UsageError(f"{pipeline.noise_from}: a {PIPELINE} is sampled by {SCHEDULER}, and this names {kind}")
    try:
        config = SchedulerConfig.model_validate(values)
        return config, EDMSchedule(sigma_min=config.sigma_min, sigma_max=config.sigma_max, rho=config.rho)
    except ValidationError as error:
        raise UsageError(f"{pipeline.noise_from}: {SCHEDULER} cannot be followed: {first_problem(error)}") from error
