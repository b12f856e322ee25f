"""Distilling a teacher: data, training, student, figures."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from distillkit.contracts.guide import Guide
from distillkit.contracts.sampler import Sampler
from distillkit.contracts.source import Pairs
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher
from distillkit.engine.checkpoint import Checkpoints
from distillkit.engine.cost import CostMeter
from distillkit.engine.metrics import MetricsFile
from distillkit.engine.optimizers import require_optimizer
from distillkit.engine.outputs import Evaluation, Outputs
from distillkit.engine.trainer import Trainer
from distillkit.environment import environment
from distillkit.errors import UsageError
from distillkit.evaluation.generator import Generator, sampling_title, student_generator, teacher_generator
from distillkit.evaluation.measure import Measure
from distillkit.evaluation.record import Record, Selection, Subject, write_record
from distillkit.evaluation.teacher_record import teacher_record
from distillkit.files import write_json
from distillkit.jobs.adapters import adapters_of
from distillkit.jobs.context import Context
from distillkit.jobs.evaluate import record_name
from distillkit.jobs.measures import Measures, measures_for
from distillkit.jobs.previews import CLIPPED, Previews
from distillkit.jobs.prompts import captions_among, cut, encoded, opened, require_prompts, with_prompts
from distillkit.jobs.recipe import inputs_of, recipe_of, sources_of
from distillkit.jobs.rows import Result, Row, read_row, row_json, table_of
from distillkit.jobs.spreading import building, spread, teacher_on
from distillkit.jobs.start import start_from
from distillkit.jobs.teacher_weights import ADAPTERS, COPIES, lower, refuse_fp8, set_apart
from distillkit.jobs.timing import timed
from distillkit.jobs.training import evaluation_of, measured, train, weights_at
from distillkit.jobs.unread import Reads
from distillkit.models.store.resolve import found_again
from distillkit.pieces import Held
from distillkit.registry import Installed, blaming
from distillkit.runs.config import RunConfig
from distillkit.runs.folder import CONFIG, RunFolder
from distillkit.students.artifact import save_student
from distillkit.students.card import write_card
from distillkit.students.description import StudentDescription, describe_student

DISTILLED = "student, distilled"
MEASURING = "after the last step, while measuring; nothing is trained again"

HIGH_RATIO = 100.0
"""Above this noise level a prediction of noise, rounded to bf16, says little of the sample."""


class Distillation:
    """One run in its folder.

    Args:
        config: what to do; its `sources` are completed here by the settings of those that the recipe reads.
        folder: where; locked and begun by the caller.
        context: device, processes, progress, signals.
        method: the method, as it is installed.
        teacher: loaded.
        untrained: whether what the training starts from is measured too, for the closing table.

    Raises:
        UsageError: for settings that the recipe cannot follow, parts from which no student could be loaded, or prompts
            that the teacher lacks or does not take.
        DistillkitError: for a recipe that fails or asks for a source that nothing offers.
    """

    def __init__(
        self, config: RunConfig, folder: RunFolder, context: Context, method: Installed, teacher: Teacher,
        *, untrained: bool = True,
    ) -> None:  # fmt: skip
        self.folder, self.context, self.method, self.untrained = folder, context, method, untrained
        self.prompts = opened(config.prompts, context.reporter.say)
        prompts = self.prompts.prompts if self.prompts else None
        held = config.teacher_weights.dtype
        if any(config.student.adapters):
            refuse_fp8(held)
        teacher = set_apart(with_prompts(teacher, prompts, config.prompts.dtype), held)
        self.teacher = teacher_on(teacher, config.training, context)
        self.reads = Reads()
        with building(self.teacher, config.training, context):
            self.recipe = recipe_of(config, method, self.teacher, self.reads)
        # After the recipe, whose networks begin as copies; before the sources, whose data are the teacher's.
        others = ADAPTERS if any(config.student.adapters) else COPIES
        self.lowered = lower(self.teacher, held, context.reporter.say, others)
        self.sources = sources_of(config, method, self.teacher, self.recipe)
        for source in self.sources.values():
            source.job = context.source_job(folder.path)
        if self.teacher.conditioner.lacks and (captions := captions_among(self.sources.values())):
            self.prompts = captions
            self.teacher.conditioner = self.teacher.conditioner.with_prompts(captions.prompts)
        require_prompts(self.teacher.spec.name, self.teacher.conditioner.lacks)
        self.config = config.model_copy(
            update={"sources": {s.name: s.config.model_dump(mode="json") for s in self.sources.values()}}
        )
        self._prepared = False
        self._described: dict[Sampler, StudentDescription] = {}

    @property
    def inputs(self) -> dict[str, str]:
        """The teacher, the prompts and the files of data by what they are, for a resumption to compare."""
        return inputs_of(self.teacher, self.sources, self.prompts.prompts if self.prompts else None)

    @property
    def sources_cost(self) -> int:
        """Teacher evaluations that the data cost which the recipe reads."""
        return sum(source.cost for source in self.sources.values())

    @cached_property
    def measures(self) -> Measures:
        """How the student is measured during the training and at its end."""
        return measures_for(self.teacher, self.config.evaluation)

    def prepare(self) -> None:
        """Find out what may be missing, before anything is written.

        Raises:
            UsageError, DistillkitError: when an objective, a source, the protocol or the start cannot be had, or when
                the student that would come out could never be loaded.
        """
        if self._prepared:
            return
        self._prepared = True
        require_optimizer(self.config.training)
        self._require_the_same_stages()
        self.strategy, self.networks = spread(
            self.recipe, self.teacher, self.config.training, self.context, self.config.teacher_weights.dtype
        )
        self._say_prompts()
        for line in adapters_of(self.recipe):
            self.context.reporter.say(line)
        self.describe(self.recipe.final_sampler, 0)
        for source in self.sources.values():
            source.check()
        if self.config.student.init:
            start_from(self.config.student.init, self.recipe, self.teacher, self.strategy, self.context.reporter.say)
        for objective in self.recipe.objectives:
            with blaming(f"objective {objective.name}", self.method.origin, "cannot be prepared"):
                objective.prepare()
        self._say_what_is_measured()

    def _require_the_same_stages(self) -> None:
        """Refuse a longer training whose checkpoints would come to lie in other stages.

        Raises:
            UsageError: as said.
        """
        stages = len(self.recipe.stages)
        if stages == 1 or not (self.folder / CONFIG).is_file():
            return
        try:
            longer = self.folder.check_same(self.config)
        except UsageError:
            return  # said when the run is begun or resumed
        if longer:
            raise UsageError(
                f"{self.folder.path} trains in {stages} stages, which are shares of its duration, so it cannot be made "
                f"longer: start another run, from this one's student if you like: --student {self.folder.path}"
            )

    def _say_prompts(self) -> None:
        if self.prompts:
            self.context.reporter.say(f"prompts: {self.prompts.summary}")
            if warning := cut(self.teacher.conditioner, self.prompts.prompts):
                self.context.reporter.say(warning)

    def _say_what_is_measured(self) -> None:
        say, ratio = self.context.reporter.say, self._start_ratio()
        say(self.measures.summary)
        if guidance := self._guidance():
            say(guidance)
        for doubt in self.config.training.doubts:
            say(f"warning: {doubt}")
        if ratio > HIGH_RATIO and self.config.training.precision != "fp32":
            say(
                f"note: the student starts at sigma / alpha = {ratio:,.0f}, where half precision rounds a sample by "
                f"about {ratio * 0.004:.2g}; --start-ratio 80 or less is usual"
            )

    def _guidance(self) -> str:
        """One line on the guidance that the student learns in; "" where there is none."""
        method, pairs = self.recipe.guidance, self.sources.get(Pairs)
        if (weight := self.recipe.final_sampler.input_guidance) is not None:
            return f"guidance: an input of the student; it is sampled with {weight:g} unless another is asked for"
        guide = f" with {self.guide.title}" if self.guide else ""
        if method is not None and pairs is not None and method != pairs.guidance:
            return f"note: the guidance of the teacher is {method:g}, and that of the pairs {pairs.guidance:g}{guide}"
        if self.guidance == 1:
            return ""
        where = " and ".join(["the teacher's"] * (method is not None) + ["the pairs'"] * (pairs is not None))
        return f"guidance: {self.guidance:g}{guide} ({where}); the student needs none itself"

    def _start_ratio(self) -> float:
        schedule = self.teacher.schedule
        first = self.recipe.final_sampler.times(schedule)[0]
        return float(schedule.ratio(torch.tensor([first], dtype=torch.float64)))

    def run(self, *, resume: bool = False) -> Result:
        """Do everything that is not done yet.

        Raises:
            Interrupted: after a signal, with the command that continues.
            DistillkitError: for anything that makes the run impossible.
        """
        began, context = time.monotonic(), self.context
        self.prepare()
        job = context.source_job(self.folder.path)
        asked, draws = self.config.prompts.encodings, self.config.training.duration
        self.teacher.conditioner = encoded(self.teacher, asked, draws, context, self.folder.path)
        opened = {kind: source.open(job) for kind, source in self.sources.items()}
        cost = CostMeter()
        for source in self.sources.values():
            # Data of the teacher's are a cost of the method whether they were made now or found.
            cost.add(source.name, source.cost)
        untrained = [self._untrained()] if self.untrained else []
        prepared = time.monotonic() - began
        context.stop_if_asked("before the first step")
        trainer = Trainer(
            self.recipe, self.teacher, self.config.training, accelerator=context.accelerator, seed=self.config.seed,
            sources=opened, cost=cost, say=context.reporter.say, strategy=self.strategy, networks=self.networks,
        )  # fmt: skip
        # Kept by checkpoints, in the place of what a resumed run takes to find it all again.
        trainer.seconds_before = prepared
        outputs = self._outputs(resumed=resume)
        with closing(outputs.trackers):
            train(trainer, outputs, self.folder, context, resume=resume)
            context.stop_if_asked(MEASURING)
            rows = [*self._teacher_row(), *untrained]
            context.stop_if_asked(MEASURING)
            rows.append(self._student_row(trainer.ema, trainer.selection))
            context.stop_if_asked(MEASURING)
            result = Result(
                self.folder.path, rows, {k: str(v) for k, v in outputs.health.items()}, dict(trainer.selection),
                trainer.seconds, dict(trainer.cost.counts),
            )  # fmt: skip
            with self.strategy.uneven():
                if context.main:
                    self._save(trainer, result, weights_at(outputs.checkpoints, trainer.step))
            outputs.trackers.table("results", *table_of(rows), trainer.step * self.config.training.batch)
        return result

    def describe(self, sampler: Sampler, images_seen: int) -> StudentDescription:
        """The student as it would be saved now.

        Raises:
            UsageError: when it could never be loaded.
        """
        student = StudentGenerator(self.recipe.student.denoiser, sampler, self.recipe.student.shape)
        if sampler not in self._described:
            # A sample is made to count its evaluations: once for each sampler.
            self._described[sampler] = describe_student(
                student, self.teacher, method=self.config.method, method_package=self.method.origin,
                settings=self.config.settings, guidance=self.guidance, guide=self.guide, remarks=self.remarks,
                reference=found_again(self.config.teacher), pipeline=self.config.pipeline.unguided,
            )  # fmt: skip
        return self._described[sampler].model_copy(update={"images_seen": images_seen})

    @property
    def guidance(self) -> float:
        """The guidance weight that the student learns in."""
        if self.recipe.guidance is not None:
            return self.recipe.guidance
        return next((source.guidance for kind, source in self.sources.items() if kind is Pairs), 1.0)

    @property
    def guide(self) -> Guide | None:
        """The network that the teacher is guided by where it is; None where nothing is."""
        return self.teacher.guide if self.guided else None

    @property
    def guided(self) -> bool:
        """Whether the teacher is guided in a loss or in pairs."""
        drawn = self.recipe.final_sampler.input_guidance is not None and not self.teacher.denoiser.takes_guidance
        weights = {self.recipe.guidance, *(source.guidance for source in self.sources.values())} - {None, 1.0}
        return drawn or bool(weights)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What belongs beside the student's figures."""
        remarks = (*(objective.remark for objective in self.recipe.objectives), self.lowered)
        return tuple(remark for remark in remarks if remark)

    def _outputs(self, *, resumed: bool) -> Outputs:
        folder, context = self.folder, self.context
        previews = None
        if context.main:
            previews = Previews(
                folder / "samples", self.teacher, self.recipe.objectives, self.config.seed, self.guidance
            )
        config = {**self.config.model_dump(mode="json"), "teacher": self.teacher.spec.name}
        return Outputs(
            Checkpoints(folder / "checkpoints", self.config.training.keep_checkpoints),
            MetricsFile(folder / "metrics.jsonl"),
            context.trackers(folder, config, resumed=resumed),
            context.reporter,
            main=context.main,
            preview=previews or (lambda student, step: None),
            preview_diagnostics=(CLIPPED,),
            evaluate=self._evaluated,
            describe_student=lambda sampler, images: self.describe(sampler, images).model_dump(mode="json"),
        )  # fmt: skip

    def _evaluated(self, student: StudentGenerator) -> Evaluation | None:
        """The figure during the training; every process has it."""
        if self.measures.selecting is None:
            return None
        return evaluation_of(self._measured(self._generator(student, "student"), self.measures.selecting))

    def _generator(self, student: StudentGenerator, name: str) -> Generator:
        subject = Subject(
            kind="student", name=name, teacher=self.teacher.spec.name, method=self.config.method,
            guidance=self.guidance, guide=self.guide.facts if self.guide else None, remarks=self.remarks,
        )  # fmt: skip
        return student_generator(student, self.teacher.conditioner, self.teacher.codec, subject)

    def _measured(
        self, generator: Generator, how: Measure, title: str = "", selection: Selection | None = None
    ) -> Record:
        batch = self.config.evaluation.batch
        return measured(generator, how, self.context, batch=batch, title=title, selection=selection)

    def _row(self, generator: Generator, name: str, selection: Selection | None = None) -> Row:
        """Measured with seeds that no choice has seen; timed alone where there is no protocol."""
        if self.measures.closing is None:
            return Row(name, *timed(generator, self.context.device), None)
        return Row.measured(name, self._measured(generator, self.measures.closing, f"measuring the {name}", selection))

    def _untrained(self) -> Row:
        """What the training starts from, sampled as the student will be; measured once, before the first step."""
        path, name = self.folder / "untrained.json", "student, untrained"
        if path.is_file():
            row = read_row(path)
            if row is not None:
                return row
        student = StudentGenerator(self.recipe.student.denoiser, self.recipe.final_sampler, self.recipe.student.shape)
        row = self._row(self._generator(student.to(self.context.device).eval(), name), name)
        if self.context.main:
            write_json(path, row_json(row))
        return row

    def _teacher_row(self) -> list[Row]:
        """The teacher as the student sees it: with the guidance that the student learns in."""
        generator = teacher_generator(self.teacher, guidance=self.guidance)
        spec = self.teacher.spec
        name = f"teacher, {sampling_title(spec.solver, spec.solver_steps, self.guidance, self.teacher)}"
        if self.measures.closing is None:
            return [Row(name, *timed(generator, self.context.device), None)]
        record = teacher_record(
            self.teacher, self.measures.closing, device=self.context.device, guidance=self.guidance,
            reporter=self.context.reporter, batch=self.config.evaluation.batch, rank=self.context.rank,
            world=self.context.world, stop=self.context.stopped,
        )  # fmt: skip
        return [Row.measured(name, record)]

    def _student_row(self, student: StudentGenerator, selection: Mapping[str, Any]) -> Row:
        looked_at = Selection(checkpoints_scored=max(1, int(selection.get("evaluated", 0))))
        return self._row(self._generator(student, DISTILLED), DISTILLED, looked_at)

    def _save(self, trainer: Trainer, result: Result, weights: Mapping[str, Held]) -> None:
        student, folder = trainer.ema, self.folder / "student"
        images = trainer.step * self.config.training.batch
        described = self.describe(student.sampler, images).model_copy(update={"nfe": result.rows[-1].nfe})
        description = save_student(folder, student, described, weights)
        rows = [self._written(row, description.weights_sha256) for row in result.rows]
        Previews(self.folder / "samples", self.teacher, (), self.config.seed).grid(folder / "samples.png", student)
        record: dict[str, Any] = {
            "format": 2,
            "kind": "run",
            "method": self.config.method,
            "teacher": self.teacher.spec.name,
            "student_sha256": description.weights_sha256,
            "protocol": None if self.measures.closing is None else self.measures.closing.protocol.name,
            "rows": [row_json(row) for row in rows],
            "health": result.health,
            "selection": result.selection,
            "cost_forward_equivalents": result.cost,
            "seconds": result.seconds,
            "config": self.config.model_dump(mode="json"),
            "environment": environment(),
        }
        write_card(folder / "README.md", description, record)
        write_json(self.folder / "record.json", record)

    def _written(self, row: Row, weights_sha256: str) -> Row:
        """The distilled student's row with its record written, as `evaluate` would write it."""
        if row.record is None or row.name != DISTILLED:
            return row
        subject = row.record.subject.model_copy(
            update={"name": self.folder.path.name, "weights_sha256": weights_sha256}
        )
        record = row.record.model_copy(update={"subject": subject})
        return replace(row, record=write_record(self.folder / "records" / record_name(record), record))
