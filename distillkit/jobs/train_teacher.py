"""Training a teacher in a run folder, with the same engine as every student."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distillkit.contracts.random import SampleRNG
from distillkit.contracts.step import ImageSource
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.embedded.digits.data import load_digits
from distillkit.data.memory import ImagesInMemory
from distillkit.data.stream import DataConfig, open_stream
from distillkit.engine.checkpoint import Checkpoints
from distillkit.engine.config import TrainingConfig
from distillkit.engine.interrupt import StopRequest
from distillkit.engine.metrics import MetricsFile, Trackers
from distillkit.engine.outputs import Outputs
from distillkit.engine.trainer import Stopped, Trainer
from distillkit.errors import Interrupted, UsageError
from distillkit.evaluation.score import Score
from distillkit.progress import Quiet, Reporter
from distillkit.runs.config import ConfigFile, EvaluationConfig, explain, merge
from distillkit.runs.folder import RunFolder
from distillkit.jobs.previews import Previews
from distillkit.jobs.scores import ruler_for, teacher_pixels
from distillkit.models.edm.catalog import DIGITS
from distillkit.models.store.folder import write_teacher
from distillkit.jobs.teacher_recipe import (
    DIGITS_TRAINING,
    EDM_TRAINING,
    LossConfig,
    NetworkConfig,
    fresh_teacher,
    teacher_recipe,
)


class TeacherRunConfig(BaseModel):
    """Everything that determines a teacher's training."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("digits", pattern=r"^[\w.-]+$", description="name of the teacher")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of weights and draws")
    conditional: bool = Field(True, description="use the labels, where the images have them")
    licence: str = Field("", description="licence of the weights, recorded with every student")
    data: DataConfig = Field(default_factory=DataConfig)
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    training: TrainingConfig
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)


def resolve_teacher(options: Mapping[str, Any], file: ConfigFile | None = None) -> TeacherRunConfig:
    """Defaults, then the file, then the options. Without data it is the recipe of the shipped weights.

    Raises:
        UsageError: naming every bad value and the nearest valid key.
    """
    asked = merge(file.values if file else {}, options)
    data = asked.get("data")
    images = data.get("path") if isinstance(data, Mapping) else None
    if images:
        defaults: dict[str, Any] = {"training": EDM_TRAINING, "name": re.sub(r"[^\w.-]", "-", Path(str(images)).stem)}
    elif options.get("network") or asked.get("name", DIGITS.name) != DIGITS.name:
        raise UsageError("what is this teacher to learn? Give its images: --data FILE.zip, FOLDER or hf:ORG/NAME")
    else:
        defaults = {"training": DIGITS_TRAINING}
    try:
        return TeacherRunConfig.model_validate(merge(defaults, asked))
    except ValidationError as error:
        raise UsageError(explain(error, TeacherRunConfig, file, options)) from error


def open_data(config: TeacherRunConfig, device: torch.device) -> tuple[TeacherSpec, ImageSource]:
    """The images, and the facts of a teacher that fits them.

    Raises:
        UsageError: when there are none, or no network of the asked family fits their size.
        DistillkitError: when they cannot be read.
    """
    if config.data.path is None:
        return DIGITS.spec, ImagesInMemory(*load_digits(), device)
    stream = open_stream(config.data, None, device, labelled=config.conditional)
    classes = stream.files.num_classes if config.conditional else 0
    spec = TeacherSpec(
        name=config.name,
        shape=stream.shape,
        num_classes=classes,
        null_label=config.loss.label_dropout > 0,
        solver_steps=18 if stream.shape[1] <= 32 else 40,
        network=config.network.describe(stream.shape, classes),
        licence=config.licence,
        source=f"trained by distillkit on {Path(config.data.path).name}, {len(stream):,} images "
        f"(fingerprint {stream.files.fingerprint[:16]})",
    )
    return spec, stream


@dataclass(frozen=True)
class TrainedTeacher:
    """Where the weights lie and how good the teacher's own sampler is with them."""

    folder: Path
    score: Score | None
    weights_sha256: str


def train_teacher(
    config: TeacherRunConfig,
    data: tuple[TeacherSpec, ImageSource],
    folder: RunFolder,
    accelerator: Accelerator,
    reporter: Reporter,
    stop: StopRequest,
    *,
    resume: bool,
    report_to: str = "none",
) -> TrainedTeacher:
    """Train a teacher from scratch on `open_data`'s images and write it as a teacher folder.

    Raises:
        Interrupted: after a signal, with the command to go on.
    """
    device = accelerator.device
    spec, images = data
    reporter = reporter if accelerator.is_main_process else Quiet()
    recipe = teacher_recipe(fresh_teacher(spec, config.seed).to(device), config.loss)
    frozen = Teacher(recipe.student.denoiser, spec)
    recipe.student.requires_grad_(True)
    trainer = Trainer(
        recipe, frozen, config.training, accelerator,
        seed=config.seed, images=images,
    )  # fmt: skip
    # Dropout: the average that is sampled from and written stays in evaluation mode.
    trainer.student.train()

    def scored(student: StudentGenerator, *, selecting: bool) -> Score | None:
        ruler = ruler_for(spec, config.evaluation.samples, selecting=selecting)
        if ruler is None:
            return None
        generate = teacher_pixels(Teacher(student.denoiser, spec), spec.solver_steps)
        with reporter.task("scoring", ruler.protocol.samples.count, "samples") as task:
            return ruler.score(
                generate, student.denoiser, spec, device, batch=config.evaluation.batch,
                rank=accelerator.process_index, world=accelerator.num_processes, advance=task.advance,
            )  # fmt: skip

    def evaluate(student: StudentGenerator) -> dict[str, float]:
        result = scored(student, selecting=True)
        return {result.label: result.value} if result else {}

    def preview(student: StudentGenerator, step: int) -> None:
        if accelerator.is_main_process:
            Previews(folder / "samples", Teacher(student.denoiser, spec), (), SampleRNG(config.seed), device)(
                student, step
            )

    outputs = Outputs(
        Checkpoints(folder / "checkpoints", config.training.keep_checkpoints),
        MetricsFile(folder / "metrics.jsonl"),
        Trackers(accelerator, report_to, folder.path.name, config.training.model_dump()),
        reporter, accelerator.is_main_process, preview, evaluate,
    )  # fmt: skip
    if resume:
        trainer.resume(outputs)
    try:
        trainer.run(outputs, should_stop=lambda: bool(stop))
    except Stopped as stopped:
        raise Interrupted(
            f"stopped and saved at step {stopped.step:,}. Go on with: {folder.resume_command}", stop.signum or 2
        ) from stopped
    finally:
        outputs.trackers.close()
    result = scored(trainer.ema, selecting=False)
    written = (
        write_teacher(folder / "teacher", trainer.ema.denoiser.state_dict(), spec)
        if accelerator.is_main_process
        else spec
    )
    return TrainedTeacher(folder / "teacher", result, written.weights_sha256)
