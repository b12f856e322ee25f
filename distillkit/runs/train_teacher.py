"""Training a teacher in a run folder, with the same engine as every student."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distillkit.contracts.random import SampleRNG
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher
from distillkit.data.digits import load_digits
from distillkit.data.images import ImagesInMemory
from distillkit.engine.checkpoint import Checkpoints
from distillkit.engine.config import TrainingConfig
from distillkit.engine.interrupt import StopRequest
from distillkit.engine.metrics import MetricsFile, Trackers
from distillkit.engine.outputs import Outputs
from distillkit.engine.trainer import Stopped, Trainer
from distillkit.errors import Interrupted, UsageError
from distillkit.evaluation.score import Score, score
from distillkit.progress import Quiet, Reporter
from distillkit.runs.config import EvaluationConfig, explain, merge
from distillkit.runs.folder import RunFolder
from distillkit.runs.previews import Previews
from distillkit.runs.scores import ruler_for, teacher_pixels
from distillkit.teachers.catalog import DIGITS
from distillkit.teachers.folder import write_teacher
from distillkit.teachers.training import DIGITS_TRAINING, fresh_teacher, teacher_recipe


class TeacherRunConfig(BaseModel):
    """Everything that determines a teacher's training."""

    model_config = ConfigDict(extra="forbid")

    teacher: str = Field("digits", description="what to train")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of weights and draws")
    training: TrainingConfig
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)


def digits_config(options: dict[str, Any]) -> TeacherRunConfig:
    """The recipe of the shipped weights, with the user's changes.

    Raises:
        UsageError: naming every bad value and the nearest valid key.
    """
    try:
        return TeacherRunConfig.model_validate(merge({"training": DIGITS_TRAINING}, options))
    except ValidationError as error:
        raise UsageError(explain(error, TeacherRunConfig)) from error


@dataclass(frozen=True)
class TrainedTeacher:
    """Where the weights lie and how good the teacher's own sampler is with them."""

    folder: Path
    score: Score | None
    weights_sha256: str


def train_teacher(
    config: TeacherRunConfig,
    folder: RunFolder,
    accelerator: Accelerator,
    reporter: Reporter,
    stop: StopRequest,
    *,
    resume: bool,
    report_to: str = "none",
) -> TrainedTeacher:
    """Train the digits teacher from scratch and write it as a teacher folder.

    Raises:
        Interrupted: after a signal, with the command to go on.
    """
    device, spec = accelerator.device, DIGITS.spec
    reporter = reporter if accelerator.is_main_process else Quiet()
    recipe = teacher_recipe(fresh_teacher(spec, config.seed).to(device))
    frozen = Teacher(recipe.student.denoiser, spec)
    recipe.student.requires_grad_(True)
    trainer = Trainer(
        recipe, frozen, config.training, accelerator,
        seed=config.seed, images=ImagesInMemory(*load_digits(), device),
    )  # fmt: skip

    def scored(student: StudentGenerator, *, selecting: bool) -> Score | None:
        ruler = ruler_for(spec, config.evaluation.samples, selecting=selecting)
        if ruler is None:
            return None
        generate = teacher_pixels(Teacher(student.denoiser, spec), spec.solver_steps)
        with reporter.task("scoring", ruler.protocol.samples.count, "samples") as task:
            return score(
                generate, student.denoiser, spec, ruler, device, batch=config.evaluation.batch,
                rank=accelerator.process_index, world=accelerator.num_processes, advance=task.advance,
            )  # fmt: skip

    def evaluate(student: StudentGenerator) -> dict[str, float]:
        result = scored(student, selecting=True)
        return {result.label: result.distance.value} if result else {}

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
