"""The harness: train every job that is not done, measure it, keep the results as they come."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import torch

from distillkit.benchmark.jobs import FIGURES_CODE, Job, distillation, hash_of, jobs_of, own_source_hash, reason_of
from distillkit.benchmark.results import Point, Results, Run, read_results, write_results
from distillkit.benchmark.suite import Suite
from distillkit.contracts.teacher import Teacher
from distillkit.environment import environment
from distillkit.errors import DistillkitError, Interrupted, UsageError
from distillkit.evaluation.generator import Generator, teacher_generator
from distillkit.evaluation.measure import Measure
from distillkit.evaluation.pipeline import fitted, measure
from distillkit.evaluation.presets import default_protocol, load_measure
from distillkit.evaluation.record import read_record, write_record
from distillkit.evaluation.sampling import inputs
from distillkit.files import cache_folder, slug
from distillkit.jobs.context import Context, launch
from distillkit.jobs.distil import Distillation
from distillkit.jobs.options import EvaluationOptions
from distillkit.jobs.previews import shown
from distillkit.jobs.run import Run as FinishedRun
from distillkit.jobs.subjects import found_subjects
from distillkit.jobs.trial import try_training
from distillkit.pictures import reach, reduced, save_grid, tiles
from distillkit.reading import json_lines
from distillkit.runs.folder import CONFIG, RunFolder
from distillkit.students.artifact import Student
from distillkit.students.load import load_student

COLUMNS, SAMPLES = 5, 20
"""Of the report's sheets: few enough to be large."""

log = logging.getLogger(__name__)

LARGEST_METRICS = 2**30

State = Literal["done", "interrupted", "to do", "cannot run"]


class Bench:
    """A suite at work in its folder, which holds results.json, records/, grid/ and runs/.

    Args:
        folder: where; locked by the caller.
        teacher: the suite's, loaded.

    Raises:
        UsageError: where no protocol is known for the teacher and the suite names none.
        DistillkitError: when the protocol's files are missing.
    """

    def __init__(self, suite: Suite, folder: Path, teacher: Teacher, context: Context) -> None:
        self.suite, self.folder, self.context = suite, folder, context
        self.teacher = teacher.to(context.device)
        self._frame: float | None = None
        self.measure = measure_of(suite, teacher)
        self.protocol = self.measure.protocol.name
        self.results = Results(
            suite=suite, environment=environment(), created=datetime.now(UTC).isoformat(timespec="seconds")
        )

    def plan(self) -> list[Job]:
        """All trainings of the suite, with their costs counted."""
        return list(jobs_of(self.suite, self.teacher, self.context))

    def seconds_of(self, job: Job) -> float:
        """About how long a training takes here, its data included; by a trial of a few steps.

        Raises:
            DistillkitError: when the trial fails.
        """
        assert job.method is not None and job.config is not None
        work, training = distillation(job.method, job.config, self.teacher, self.context), job.config.training
        trial = try_training(work.recipe, work.teacher, training, self.context.accelerator)
        seconds = training.duration * trial.seconds_per_image + job.sources_cost * trial.seconds_per_evaluation
        return seconds / self.context.world

    def state(self, job: Job) -> State:
        """What is there of a job."""
        if job.problem:
            return "cannot run"
        folder = self._folder(job)
        return "done" if folder.finished else "interrupted" if (folder / CONFIG).is_file() else "to do"

    def run(self) -> Results:
        """Do everything that is not done yet. A job that fails does not stop the others.

        Raises:
            Interrupted: after a signal; everything that was done is kept.
            DistillkitError: when no job can be run, or the teacher cannot be measured.
        """
        say = self.context.reporter.say
        try:
            jobs = self.plan()
            require_some(jobs)
            for problem in _problems(jobs):
                say(f"cannot run: {problem}")
            self.results = self.results.model_copy(update={"measured": self._known()})
            self._measure_teacher()
            for number, job in enumerate(jobs, 1):
                say(f"[{number}/{len(jobs)}] {job.entry}, seed {job.seed}: {self.state(job)}")
                run = self._outcome(job)
                self._keep(self.results.with_run(run))
        except Interrupted as stopped:
            raise Interrupted(
                "stopped; what was done is kept, and the same command continues", stopped.exit_code - 128
            ) from stopped
        return self.results

    def _known(self) -> dict[str, str]:
        """What the records that are there were measured of."""
        try:
            return read_results(self.folder).measured
        except DistillkitError:
            return {}

    def _keep(self, results: Results) -> None:
        self.results = results
        if self.context.main:
            write_results(self.folder, results)

    def _folder(self, job: Job) -> RunFolder:
        return RunFolder(self.folder / "runs" / job.name, f"distillkit run {job.method.name if job.method else ''}")

    def _outcome(self, job: Job) -> Run:
        """The job's run and records, made or found; a failure becomes a result too."""
        method = self.suite.method_of(job.entry)
        about = {"entry": job.entry, "method": method, "package": job.package, "seed": job.seed, "key": job.key}
        try:
            if job.problem:
                raise DistillkitError(job.problem)
            folder = self._trained(job)
            record = FinishedRun(folder).summary
            return Run(
                **about, state="done", folder=str(folder.relative_to(self.folder)), config=record["config"],
                cost=record["cost_forward_equivalents"], images=record["config"]["training"]["duration"],
                seconds=record["seconds"], health=record["health"], curve=tuple(curve(folder)),
                records=tuple(self._measure_student(job, folder)),
            )  # fmt: skip
        except Interrupted:
            raise
        except Exception as error:  # a method may fail in any way, and the others go on
            reason = reason_of(error)
            self.context.reporter.say(f"failed: {job.entry}, seed {job.seed} ({job.package}): {reason}")
            return Run(**about, state="failed", reason=reason)
        finally:
            gc.collect()
            self.context.accelerator.free_memory()

    def _trained(self, job: Job) -> Path:
        """The folder of the job's finished run."""
        assert job.method is not None and job.config is not None
        folder = self._folder(job)
        if folder.finished:
            return folder.path
        work = Distillation(job.config, folder, self.context, job.method, self.teacher)
        work.prepare()
        begun = (folder / CONFIG).is_file()
        launch(
            folder, work.config, self.context, lambda: work.run(resume=begun), resume=begun, inputs=work.inputs
        )  # fmt: skip
        return folder.path

    def _measure_teacher(self) -> None:
        own = self.teacher.spec.solver_steps
        steps = self.suite.teacher_steps or (own,)
        pictured = own if own in steps else max(steps)
        records = []
        for count in steps:
            generator = teacher_generator(self.teacher, count, self.suite.guidance)
            records.append(self._measured(generator, f"teacher-{count}-steps"))
            if count == pictured:
                self._picture("teacher", generator)
        self._keep(self.results.model_copy(update={"teacher_records": tuple(records)}))

    def _measure_student(self, job: Job, folder: Path) -> Iterator[str]:
        """Records at the student's own number of evaluations and at those of the suite that its sampler can do."""
        student = load_student(folder)
        for sampled in (student, *_otherwise(student, self.suite.nfe)):
            nfe = round(sampled.nfe)
            generator = found_subjects(sampled, EvaluationOptions(), self.context)[0].candidate
            assert isinstance(generator, Generator)
            generator = replace(generator, subject=generator.subject.model_copy(update={"name": job.entry}))
            if job.seed == 0:
                self._picture(job.entry if sampled is student else f"{job.entry}, NFE {nfe}", generator)
            yield self._measured(generator, f"{job.entry}-seed{job.seed}-nfe{nfe}")

    def _measured(self, generator: Generator, name: str) -> str:
        """The record's path in the benchmark's folder; measured unless it is there and of all the same."""
        path = Path("records") / f"{name}.json"
        key = hash_of(
            {
                "of": generator.identity(), "named": generator.subject.name, "code": own_source_hash(*FIGURES_CODE),
                "protocol": fitted(generator, self.measure).protocol.id,
            }
        )[:16]  # fmt: skip
        if self.results.measured.get(str(path)) != key or not _whole(self.folder / path):
            context = self.context
            record = measure(
                generator, self.measure, device=context.device, rank=context.rank, world=context.world,
                reporter=context.reporter, stop=context.stopped, folder=cache_folder() / "evaluations",
            )  # fmt: skip
            if context.main:
                write_record(self.folder / path, record)
            context.accelerator.wait_for_everyone()
        self.results = self.results.model_copy(update={"measured": {**self.results.measured, str(path): key}})
        return str(path)

    @torch.inference_mode()
    def _picture(self, name: str, generator: Generator) -> None:
        """A sheet of samples from the same noise and conditions for every generator; points in the teacher's frame."""
        path = Path("grid") / f"{slug(name)}.png"
        if self.context.main:
            device, content = self.context.device, generator.content
            samples = fitted(generator, self.measure).protocol.samples
            noise, keys, seeds = inputs(samples, shown(content, SAMPLES), generator.shape, generator.conditioner)
            made = generator.generate(noise.to(device), generator.conditioner.encode(keys).to(device), seeds)
            if content == "points" and self._frame is None:
                self._frame = reach(made)
            pictures = reduced(tiles(made, content, self._frame))
            captions = [] if content == "points" else generator.conditioner.captions(keys)
            save_grid(self.folder / path, pictures, min(COLUMNS, len(pictures)), captions=captions)
        self.results = self.results.model_copy(update={"grid": {**self.results.grid, name: str(path)}})


def measure_of(suite: Suite, teacher: Teacher) -> Measure:
    """The protocol of a suite, ready to measure.

    Raises:
        UsageError: where no protocol is known for the teacher and the suite names none.
        DistillkitError: when the protocol's files are missing.
    """
    protocol = suite.protocol or default_protocol(teacher)
    if protocol is None:
        raise UsageError(
            f"no protocol is known for the teacher {teacher.spec.name}: name one in the suite (protocol: NAME, see "
            "`distillkit protocols`, or protocol: FILE, made of images by `distillkit reference make`)"
        )
    shape = teacher.codec.decoded_shape(teacher.spec.shape)
    return load_measure(protocol, count=suite.samples, shape=shape)


def require_some(jobs: Sequence[Job]) -> None:
    """Refuse a benchmark of which nothing can be run.

    Raises:
        DistillkitError: with every entry's reason.
    """
    if all(job.problem for job in jobs):
        raise DistillkitError("none of the entries can be run:\n  " + "\n  ".join(_problems(jobs)))


def _otherwise(student: Student, evaluations: tuple[int, ...]) -> Iterator[Student]:
    """The student with other numbers of evaluations, those that its sampler can do."""
    for nfe in sorted({*evaluations} - {round(student.nfe)}):
        try:
            yield student.with_nfe(nfe)
        except UsageError:
            continue


def _whole(path: Path) -> bool:
    try:
        return read_record(path).kind == "measured"
    except DistillkitError:
        return False


def _problems(jobs: Sequence[Job]) -> Iterator[str]:
    return (f"{job.entry}: {job.problem}" for job in jobs if job.seed == 0 and job.problem)


def curve(run: Path) -> Iterator[Point]:
    """The figures that a run measured on its way; lines of its metrics that are none are passed over and reported."""
    for entry in json_lines(run / "metrics.jsonl", most=LARGEST_METRICS, say=log.warning):
        if found := entry.get("evaluation"):
            try:
                figure = {key: found.get(key) for key in ("value", "error", "nfe")}
                yield Point(cost=entry["cost"], images=entry["images"], **figure)
            except (AttributeError, KeyError, ValueError):
                log.warning("%s: a malformed evaluation was skipped", run / "metrics.jsonl")
