"""Training a part of a pipeline alone, its autoencoder or its text encoder, in a run folder, as every other run."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from distillkit.contracts.learner import Learner
from distillkit.contracts.source import Batches, Images
from distillkit.engine.checkpoint import Checkpoints
from distillkit.engine.learning import LearnerTrainer
from distillkit.engine.metrics import MetricsFile
from distillkit.engine.outputs import Evaluation, Outputs, Preview
from distillkit.environment import environment
from distillkit.files import write_bytes, write_json
from distillkit.jobs.autoencoder import AutoencoderPart
from distillkit.jobs.context import Context
from distillkit.jobs.contrastive import TextEncoderPart
from distillkit.jobs.part import Part, PartImages, PartName
from distillkit.jobs.part_data import Pipeline, part_images, pipeline_of
from distillkit.jobs.spreading import require_whole
from distillkit.jobs.teacher_config import TeacherRunConfig
from distillkit.jobs.training import train
from distillkit.models.diffusers.folder import pipeline_at
from distillkit.models.diffusers.write import write_pipeline
from distillkit.pictures import save_grid
from distillkit.reading import read_mapping, validated
from distillkit.runs.folder import RunFolder

PIPELINE, RECORD = "pipeline", "record.json"


class TrainedPart(BaseModel):
    """What a part became: the figures of it before and after the training, of pictures that are held for that."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    part: PartName
    before: dict[str, float]
    after: dict[str, float]
    held: int = Field(ge=0, description="pictures that it was measured on")
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the part's own weights")

    @property
    def summary(self) -> str:
        """One line for people."""
        figures = ", ".join(f"{label} {self.before[label]:.4g} -> {value:.4g}" for label, value in self.after.items())
        return f"{self.part}: {figures} (untrained -> trained, {self.held:,} pictures)"


def trained_part(folder: RunFolder) -> TrainedPart:
    """What a finished run has made of a part.

    Raises:
        DistillkitError: when its record is missing or damaged.
    """
    path = folder / RECORD
    return validated(TrainedPart, {**read_mapping(path), "folder": folder / PIPELINE}, str(path))


def new_part(config: TeacherRunConfig, pipeline: Pipeline, images: PartImages, processes: int = 1) -> Part:
    """The part that a configuration names, with random weights that depend on its seed alone.

    Raises:
        UsageError: for pictures, settings or a pipeline that it cannot be trained with.
        DistillkitError: when a configuration is damaged.
    """
    if config.part == "autoencoder":
        part: Part = AutoencoderPart(pipeline.parts, config.autoencoder, config.seed)
    else:
        encoder = getattr(pipeline.conditioner, "encoder", None)
        part = TextEncoderPart(pipeline.parts, encoder, images.shape, config.seed)
    part.check(config.training, images.shape, processes)
    return part


class PartTraining:
    """One training of a part in its folder.

    Args:
        folder: locked and begun by the caller.

    Raises:
        UsageError, DistillkitError: as `new_part`, and when there are no pictures.
    """

    def __init__(self, config: TeacherRunConfig, folder: RunFolder, context: Context) -> None:
        self.config, self.folder, self.context = config, folder, context
        require_whole(config.training, f"what trains {config.part}")
        self.pipeline = pipeline_of(config)
        self.images = part_images(config, self.pipeline, context.reporter.say)
        self.part = new_part(config, self.pipeline, self.images, context.accelerator.num_processes)
        context.reporter.say(f"data: {self.images.summary}")
        for doubt in config.training.doubts:
            context.reporter.say(f"warning: {doubt}")

    @property
    def inputs(self) -> dict[str, str]:
        """The pictures by what they are, for a resumption to compare."""
        found = self.images.fingerprint
        return {"data": f"fingerprint {found[:16]}"} if found else {}

    def run(self, *, resume: bool = False) -> TrainedPart:
        """Train from scratch, or from the newest checkpoint; write the pipeline, then the record.

        Raises:
            Interrupted: after a signal, with the command that continues.
        """
        context, part, held = self.context, self.part, self.images.held()
        before = part.figures(part.learner.to(context.device).eval(), held)
        sources: dict[type, Batches[Any]] = {Images: self.images.open(context.device, self.images.batch)}
        trainer = LearnerTrainer(
            part.learner, self.config.training, accelerator=context.accelerator, seed=self.config.seed,
            sources=sources, say=context.reporter.say,
        )  # fmt: skip
        outputs = self._outputs(held, resumed=resume)
        with closing(outputs.trackers):
            train(trainer, outputs, self.folder, context, resume=resume)
            after = part.figures(trainer.ema, held)
            rows = [[label, value] for label, value in after.items()]
            outputs.trackers.table("results", ["figure", "value"], rows, trainer.step * trainer.config.batch)
        place = self.folder / PIPELINE
        if context.main:
            self._write(place, trainer.ema, held, before, after, trainer.seconds)
        context.accelerator.wait_for_everyone()
        return trained_part(self.folder)

    def _write(
        self, place: Path, learner: Learner, held: Images, before: dict[str, float], after: dict[str, float],
        seconds: float,
    ) -> None:  # fmt: skip
        part, like = self.part, self.pipeline.parts.folder
        replaced = part.replaced(learner, held)
        # A network has to be trained anew on other latents or encodings.
        stale = pipeline_at(like).network.name
        hashes = write_pipeline(place, like, {part.component: replaced}, without=(stale,))
        made = TrainedPart(
            folder=place, part=part.name, before=before, after=after, held=len(held.sample),
            weights_sha256=hashes[part.component],
        )  # fmt: skip
        record = {
            "format": 1,
            **made.model_dump(mode="json", exclude={"folder"}),
            "changes": dict(replaced.changes),
            "not_written": [stale],
            "images": self.images.summary,
            "seconds": seconds,
            "config": self.config.model_dump(mode="json"),
            "environment": environment(),
        }
        write_json(self.folder / RECORD, record)

    def _outputs(self, held: Images, *, resumed: bool) -> Outputs:
        context, folder, part = self.context, self.folder, self.part

        def evaluate(learner: Learner) -> Evaluation:
            return part.evaluation(learner, held)

        def preview(learner: Learner, step: int) -> Preview | None:
            rows = part.rows(learner, held) if context.main else {}
            if not rows:
                return None
            path = folder / "samples" / f"step-{step:09d}.png"
            save_grid(path, torch.cat(list(rows.values())), len(next(iter(rows.values()))))
            write_bytes(path.parent / "README.txt", f"rows from top to bottom: {', '.join(rows)}\n".encode())
            return Preview(path)

        return Outputs(
            Checkpoints(folder / "checkpoints", self.config.training.keep_checkpoints),
            MetricsFile(folder / "metrics.jsonl"),
            context.trackers(folder, self.config.model_dump(mode="json"), resumed=resumed),
            context.reporter, main=context.main, preview=preview, evaluate=evaluate,
        )  # fmt: skip
