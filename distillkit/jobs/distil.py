"""A run: teacher, pairs, training, student, scores, closing table."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from distillkit.contracts.random import SampleRNG
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.step import ImageSource
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher
from distillkit.data.embedded import embedded_images
from distillkit.data.pairs import SHARD, LoadedPairs, PairStore
from distillkit.data.stream import open_stream
from distillkit.engine.checkpoint import Checkpoints
from distillkit.engine.cost import CostMeter
from distillkit.engine.interrupt import StopRequest
from distillkit.engine.metrics import MetricsFile, Trackers
from distillkit.engine.outputs import Outputs
from distillkit.engine.trainer import Stopped, Trainer
from distillkit.errors import DistillkitError, Interrupted
from distillkit.evaluation.score import Score
from distillkit.files import require_space, write_json
from distillkit.progress import Quiet, Reporter
from distillkit.registry import Installed, blaming, registry
from distillkit.runs.config import RunConfig
from distillkit.runs.folder import RunFolder, environment
from distillkit.jobs.previews import Previews
from distillkit.jobs.scores import images_per_second, ruler_for, student_pixels, teacher_score
from distillkit.students.artifact import StudentDescription, save_student
from distillkit.students.card import write_card
from distillkit.models.store.resolve import load_teacher

SOURCES = frozenset({"samples", "pairs", "pair_samples", "images"})
"""What a recipe may read of a step."""


@dataclass(frozen=True)
class Row:
    """One generator in the closing table."""

    name: str
    nfe: float
    images_per_second: float
    score: Score | None


@dataclass(frozen=True)
class Result:
    """What a run made."""

    folder: Path
    rows: list[Row]
    health: dict[str, str]
    seconds: float
    cost: dict[str, int]


class Distillation:
    """One run in its folder.

    Args:
        config: what to do; its method and teacher are loaded here.
        folder: where; locked and begun by the caller.
        accelerator: device, processes, precision.
        reporter: where progress goes, on the first process.
        stop: a noted signal.
        report_to: a tracker's name, or "none".
        teacher: an already loaded one.

    Raises:
        UsageError: for an unknown teacher.
        DistillkitError: for a recipe that asks for what the engine does not have.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        accelerator: Accelerator,
        reporter: Reporter,
        stop: StopRequest,
        report_to: str = "none",
        teacher: Teacher | None = None,
    ) -> None:
        self.config, self.folder, self.accelerator = config, folder, accelerator
        self.main = accelerator.is_main_process
        self.reporter = reporter if self.main else Quiet()
        self.stop, self.report_to = stop, report_to
        self.installed: Installed = registry().methods[config.method]
        teacher = teacher or load_teacher(config.teacher, self.reporter, lambda: stop.signum or 0)
        self.teacher: Teacher = teacher.to(accelerator.device)
        self.recipe: Recipe = self._recipe()
        self.rng = SampleRNG(config.seed)

    def _recipe(self) -> Recipe:
        method = self.installed.value()
        blamed = blaming(f"method {self.config.method}", self.installed.origin, "cannot make its recipe")
        with blamed, torch.random.fork_rng(devices=[]):
            # A recipe may hold fresh networks: their weights are the seed's, on every process.
            torch.manual_seed(self.config.seed)
            recipe = method.recipe(self.teacher, method.Config.model_validate(self.config.settings))
        if strange := recipe.needs - SOURCES:
            raise DistillkitError(
                f"method {self.config.method} needs {', '.join(sorted(strange))}, which `run` has no source for; "
                f"it has {', '.join(sorted(SOURCES))}"
            )
        return recipe

    @property
    def pair_store(self) -> PairStore:
        pairs = self.config.pairs
        return PairStore(self.teacher, steps=pairs.steps or self.teacher.spec.solver_steps, guidance=pairs.guidance)

    @property
    def pairs_cost(self) -> int:
        """Teacher evaluations of the noise-image pairs that the recipe reads; 0 if it reads none."""
        if not {"pairs", "pair_samples"} & self.recipe.needs:
            return 0
        pairs = self.config.pairs
        return pairs.count * (2 * self.pair_store.steps - 1) * (1 if pairs.guidance == 1 else 2)

    def prepare(self) -> None:
        """Get all that may be missing, before anything is written.

        Raises:
            DistillkitError: when an objective cannot get what it needs, or the images cannot be opened.
        """
        for objective in self.recipe.objectives:
            objective.prepare()
        _ = self.images

    def run(self, *, resume: bool = False) -> Result:
        """Do everything that is not done yet.

        Raises:
            Interrupted: after a signal, with the command to go on.
            DistillkitError: for anything that makes the run impossible.
        """
        began = time.monotonic()
        device = self.accelerator.device
        cost = CostMeter()
        self.prepare()
        pairs = self._pairs(cost) if {"pairs", "pair_samples"} & self.recipe.needs else None
        trainer = Trainer(
            self.recipe, self.teacher, self.config.training, self.accelerator,
            seed=self.config.seed, pairs=pairs, images=self.images, cost=cost,
        )  # fmt: skip
        if self.main:
            # One more than are kept lies there while the newest is written.
            copies = self.config.training.keep_checkpoints + 1
            require_space(self.folder.path, copies * trainer.checkpoint_bytes(), f"{copies} checkpoints")
        outputs = self._outputs()
        if resume:
            trainer.resume(outputs)
        # What the method starts from: the teacher's weights, sampled as the student will be.
        sampler = next((s.sampler for s in reversed(self.recipe.stages) if s.sampler), self.recipe.student.sampler)
        untrained = StudentGenerator.from_teacher(self.teacher, sampler).to(device).eval()
        try:
            trainer.run(outputs, should_stop=lambda: bool(self.stop))
        except Stopped as stopped:
            raise self._interrupted(f"stopped and saved at step {stopped.step:,}") from stopped
        finally:
            outputs.trackers.close()
        rows = self._rows(trainer.ema, untrained)
        result = Result(
            self.folder.path, rows, {k: str(v) for k, v in outputs.health.items()},
            time.monotonic() - began, dict(trainer.cost.counts),
        )  # fmt: skip
        if self.main:
            self._save(trainer, result)
        return result

    @cached_property
    def images(self) -> ImageSource | None:
        """Real images that fit the teacher, where the recipe reads them; embedded ones if no others are named."""
        if "images" not in self.recipe.needs:
            return None
        config, spec = self.config.data, self.teacher.spec
        embedded = None if config.path else embedded_images(spec, self.accelerator.device)
        return embedded or open_stream(config, spec, self.accelerator.device)

    def _pairs(self, cost: CostMeter) -> LoadedPairs:
        """Open the noise-image pairs, after making those that are missing."""
        store, count, accelerator = self.pair_store, self.config.pairs.count, self.accelerator
        missing = len(store.missing(count))
        if missing:
            with self.reporter.task("making noise-image pairs", missing * SHARD, "pairs") as task:

                def advance(made: int) -> None:
                    task.advance(made * accelerator.num_processes)
                    if self.stop:
                        raise self._interrupted(f"stopped while making pairs; complete ones stay in {store.folder}")

                store.make(
                    count, accelerator.device, rank=accelerator.process_index, world=accelerator.num_processes,
                    advance=advance,
                )  # fmt: skip
        else:
            self.reporter.say(f"using {count:,} noise-image pairs from {store.folder}")
        accelerator.wait_for_everyone()
        # Pairs are a cost of the method whether they were made now or found.
        cost.add("pairs", self.pairs_cost)
        return store.open(count, accelerator.device)

    def _outputs(self) -> Outputs:
        config, folder = self.config, self.folder
        ruler = ruler_for(self.teacher.spec, config.evaluation.samples, selecting=True)

        def evaluate(student: StudentGenerator) -> dict[str, float]:
            if ruler is None:
                return {}
            result = ruler.score(
                student_pixels(student, self.teacher), student.denoiser, student.spec, self.accelerator.device,
                batch=config.evaluation.batch,
                rank=self.accelerator.process_index, world=self.accelerator.num_processes,
            )  # fmt: skip
            return {result.label: result.value}

        previews: Callable[[StudentGenerator, int], None] = lambda student, step: None  # noqa: E731
        if self.main:
            (folder / "samples").mkdir(exist_ok=True)
            previews = Previews(
                folder / "samples", self.teacher, self.recipe.objectives, self.rng, self.accelerator.device
            )
        return Outputs(
            Checkpoints(folder / "checkpoints", config.training.keep_checkpoints),
            MetricsFile(folder / "metrics.jsonl"),
            Trackers(
                self.accelerator, self.report_to, folder.path.name, {**config.training.model_dump(), **config.settings}
            ),
            self.reporter,
            self.main,
            previews,
            evaluate,
        )

    def _rows(self, student: StudentGenerator, untrained: StudentGenerator) -> list[Row]:
        """Score teacher, untrained and distilled student with seeds that no choice has seen."""
        device, batch = self.accelerator.device, self.config.evaluation.batch
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        ruler = ruler_for(self.teacher.spec, self.config.evaluation.samples)
        steps = self.teacher.spec.solver_steps
        rows: list[Row] = []
        if ruler:
            result = teacher_score(self.teacher, ruler, device, self.reporter, batch=batch)
            rows.append(Row(f"teacher, {steps} Heun steps", result.nfe, result.images_per_second, result))
        for name, generator in (("student, untrained", untrained), ("student, distilled", student)):
            pixels = student_pixels(generator, self.teacher)
            if ruler:
                result = ruler.score(
                    pixels, generator.denoiser, generator.spec, device, batch=batch, rank=rank, world=world
                )
                rows.append(Row(name, result.nfe, result.images_per_second, result))
            else:
                rows.append(Row(name, 1.0, images_per_second(pixels, generator.spec, device, batch), None))
        return rows

    def _save(self, trainer: Trainer, result: Result) -> None:
        student = trainer.ema
        description = StudentDescription(
            distillkit=version("distillkit"),
            method=self.config.method,
            method_package=self.installed.origin,
            settings=self.config.settings,
            teacher=self.teacher.spec,
            sampler=student.sampler.model_dump(mode="json"),
            nfe=result.rows[-1].nfe,
            guidance=float(self.config.settings.get("guidance", 1.0)),
            images_seen=trainer.step * self.config.training.batch,
        )
        folder = self.folder / "student"
        description = save_student(folder, student, description)
        previews = Previews(self.folder / "samples", self.teacher, (), self.rng, self.accelerator.device)
        previews.grid(folder / "samples.png", student)
        ruler = ruler_for(self.teacher.spec, self.config.evaluation.samples)
        record: dict[str, Any] = {
            "format": 1,
            "kind": "run",
            "method": self.config.method,
            "teacher": self.config.teacher,
            "student_sha256": description.weights_sha256,
            "protocol": ruler.protocol.model_dump(mode="json") if ruler else None,
            "protocol_id": ruler.protocol.id if ruler else None,
            "rows": [
                {
                    "name": row.name,
                    "nfe": row.nfe,
                    "images_per_second": row.images_per_second,
                    row.score.label if row.score else "score": row.score and row.score.value,
                    "terms": row.score and dict(row.score.terms),
                }
                for row in result.rows
            ],
            "health": result.health,
            "cost_forward_equivalents": result.cost,
            "seconds": result.seconds,
            "config": self.config.model_dump(mode="json"),
            "environment": environment(),
        }
        write_card(folder / "README.md", description, record)
        write_json(self.folder / "record.json", record)

    def _interrupted(self, what: str) -> Interrupted:
        signum = self.stop.signum or 2
        return Interrupted(f"{what}. Go on with: {self.folder.resume_command}", signum)
