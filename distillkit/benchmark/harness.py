"""The harness: train every job that is not done, measure it, keep the results as they come."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path

from distillkit.benchmark.jobs import (
    FIGURES_CODE,
    Job,
    distillation,
    hash_of,
    jobs_of,
    own_source_hash,
    reason_of,
    teacher_for,
)  # fmt: skip
from distillkit.benchmark.measures import as_of, is_of, measure_of
from distillkit.benchmark.outcomes import (
    State,
    about_run,
    curve,
    failed_run,
    failure,
    known_records,
    problems_of,
    require_some,
    run_folder,
    state_of,
)  # fmt: skip
from distillkit.benchmark.published import published_candidate, require_comparable
from distillkit.benchmark.results import Results, Run, write_results
from distillkit.benchmark.sheets import Sheets, sheet
from distillkit.benchmark.suite import Suite
from distillkit.contracts.teacher import Teacher
from distillkit.engine.watch import lost_another
from distillkit.environment import environment
from distillkit.errors import DistillkitError, Interrupted, UsageError
from distillkit.evaluation.generator import Candidate, Generator, teacher_generator
from distillkit.evaluation.pipeline import fitted, measure
from distillkit.evaluation.record import Record, read_record, write_record
from distillkit.evaluation.teacher_record import teacher_record
from distillkit.files import cache_folder
from distillkit.jobs.context import Context, causes_of, launch
from distillkit.jobs.distil import Distillation
from distillkit.jobs.options import EvaluationOptions
from distillkit.jobs.run import Run as FinishedRun
from distillkit.jobs.subjects import found_subjects
from distillkit.jobs.trial import try_training
from distillkit.runs.folder import CONFIG
from distillkit.students.artifact import Student
from distillkit.students.load import load_student

LOST_DEVICE = "CUDA error"
"""In messages of failures after which the process can compute nothing on its device any more."""


class ProcessUnusable(DistillkitError):
    """A device failed, or another process of the same job ended: this process cannot go on with other jobs."""


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
        self.measure = measure_of(suite, teacher)
        self.protocol = self.measure.protocol.name
        self.results = Results(
            suite=suite, environment=environment(), created=datetime.now(UTC).isoformat(timespec="seconds")
        )

    @cached_property
    def sheets(self) -> Sheets:
        """The pictures, in which the teacher takes its own number of steps where that is measured."""
        own, steps = self.teacher.spec.solver_steps, self._teacher_steps
        pictured = teacher_generator(self.teacher, own if own in steps else max(steps), self.suite.guidance)
        return Sheets(self.measure, pictured, self.context.device)

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
        trial = try_training(
            work.recipe, work.teacher, training, self.context.accelerator, spread=(work.strategy, work.networks)
        )
        seconds = training.duration * trial.seconds_per_image + job.sources_cost * trial.seconds_per_evaluation
        return seconds / self.context.world

    def state(self, job: Job) -> State:
        """What is there of a job."""
        return state_of(self.folder, job)

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
            for problem in problems_of(jobs):
                say(f"cannot run: {problem}")
            self.begin()
            self.measure_teacher()
            self._keep(self.results)
            for number, job in enumerate(jobs, 1):
                say(f"[{number}/{len(jobs)}] {job.title}: {self.state(job)}")
                run = self.outcome(job)
                self._keep(self.results.with_run(run))
        except Interrupted as stopped:
            raise Interrupted(
                "stopped; what was done is kept, and the same command continues", stopped.exit_code - 128
            ) from stopped
        return self.results

    def begin(self) -> None:
        """Start from nothing but the records that are there."""
        update = {"runs": (), "teacher_records": (), "grid": {}, "measured": known_records(self.folder)}
        self.results = self.results.model_copy(update=update)

    def _keep(self, results: Results) -> None:
        self.results = results
        if self.context.main:
            write_results(self.folder, results)

    def outcome(self, job: Job) -> Run:
        """The job's run and records, made or found; a failure becomes a result too.

        Raises:
            Interrupted: after a signal; everything that was done is kept.
            ProcessUnusable: where no other job can be done in this process either.
        """
        try:
            if job.problem:
                raise DistillkitError(job.problem)
            if job.published:
                return Run(**about_run(self.suite, job), state="done", records=(self._measure_published(job),))
            folder, own = self._trained(job)
            record = FinishedRun(folder).summary
            return Run(
                **about_run(self.suite, job), state="done", folder=str(folder.relative_to(self.folder)),
                config=record["config"], cost=record["cost_forward_equivalents"],
                images=record["config"]["training"]["duration"],
                seconds=record["seconds"], health=record["health"], curve=tuple(curve(folder)),
                records=tuple(self._measure_student(job, folder, own)),
            )  # fmt: skip
        except Interrupted:
            raise
        except Exception as error:  # a method may fail in any way, and the others go on
            # A failure in a loss is told as its plugin's, and raised from what it was.
            if any(LOST_DEVICE in str(cause) or lost_another(cause) for cause in causes_of(error)):
                raise ProcessUnusable(f"{job.title}: {reason_of(error)}") from error
            run = failed_run(self.suite, job, reason_of(error))
            self.context.reporter.say(failure(run))
            return run
        finally:
            gc.collect()
            self.context.accelerator.free_memory()

    def _trained(self, job: Job) -> tuple[Path, Record | None]:
        """The folder of the job's finished run, and the record of its student where it ended just now."""
        assert job.method is not None and job.config is not None
        folder = run_folder(self.folder, job)
        if folder.finished:
            return folder.path, None
        teacher = teacher_for(job.config, self.teacher, self.context)
        # Where students start from is the teacher in one step, or nearly: a row of every training would be the same.
        work = Distillation(job.config, folder, self.context, job.method, teacher, untrained=False)
        work.prepare()
        begun = (folder / CONFIG).is_file()
        launch(
            folder, work.config, self.context, lambda: work.run(resume=begun), resume=begun, inputs=work.inputs
        )  # fmt: skip
        # The first process alone writes the record, which all read.
        self.context.accelerator.wait_for_everyone()
        return folder.path, FinishedRun(folder.path).record

    def measure_teacher(self) -> None:
        """Its records at the suite's numbers of steps, and its picture.

        Raises:
            DistillkitError: when it cannot be measured.
            Interrupted: after a signal.
        """
        records = []
        for count in self._teacher_steps:
            generator = teacher_generator(self.teacher, count, self.suite.guidance)
            records.append(self._measured(generator, f"teacher-{count}-steps", partial(self._teacher_record, count)))
        self._picture("teacher", self.sheets.teacher)
        self.results = self.results.model_copy(update={"teacher_records": tuple(records)})

    def _teacher_record(self, steps: int) -> Record:
        """The teacher's record, measured anew and kept where the trainings, which need it as well, find it."""
        context = self.context
        return teacher_record(
            self.teacher, self.measure, steps=steps, guidance=self.suite.guidance, device=context.device,
            rank=context.rank, world=context.world, reporter=context.reporter, stop=context.stopped, fresh=True,
        )  # fmt: skip

    @property
    def _teacher_steps(self) -> tuple[int, ...]:
        return self.suite.teacher_steps or (self.teacher.spec.solver_steps,)

    def _measure_student(self, job: Job, folder: Path, own: Record | None) -> Iterator[str]:
        """Records at the student's own number of evaluations and at those of the suite that its sampler can do.

        Args:
            own: of the student, made when its training ended by the code of now: it is not measured a second time.
        """
        student = load_student(folder)
        for sampled in (student, *_otherwise(student, self.suite.nfe)):
            nfe = round(sampled.nfe)
            generator = found_subjects(sampled, EvaluationOptions(), self.context)[0].candidate
            assert isinstance(generator, Generator)
            generator = replace(generator, subject=generator.subject.model_copy(update={"name": job.entry}))
            if job.seed == self.suite.first_seed:
                self._picture(job.entry if sampled is student else f"{job.entry}, NFE {nfe}", generator)
            made = partial(as_of, generator, own) if own and is_of(own, generator, self.measure) else None
            yield self._measured(generator, f"{job.entry}-seed{job.seed}-nfe{nfe}", made)

    def _measure_published(self, job: Job) -> str:
        """The record of a generator that others have trained, under the suite's protocol.

        Raises:
            DistillkitError: where it is none, or makes other samples than the suite's students.
        """
        assert job.published is not None
        candidate = published_candidate(job.published, self.context)
        subject = candidate.subject.model_copy(update={"name": job.entry})
        candidate = replace(candidate, subject=subject)
        require_comparable(candidate, self.sheets.teacher, self.measure, self.context)
        self._picture(job.entry, candidate)
        return self._measured(candidate, job.name)

    def _measured(self, generator: Candidate, name: str, measured: Callable[[], Record] | None = None) -> str:
        """The record's path in the benchmark's folder; measured unless it is there and of all the same.

        Args:
            measured: makes the record, where that is not done as for every generator.
        """
        path = Path("records") / f"{name}.json"
        key = hash_of(
            {
                "of": generator.identity(), "named": generator.subject.name, "code": own_source_hash(*FIGURES_CODE),
                "protocol": fitted(generator, self.measure).protocol.id,
            }
        )[:16]  # fmt: skip
        if self.results.measured.get(str(path)) != key or not _whole(self.folder / path):
            context = self.context
            record = measured() if measured else measure(
                generator, self.measure, device=context.device, rank=context.rank, world=context.world,
                reporter=context.reporter, stop=context.stopped, folder=cache_folder() / "evaluations",
            )  # fmt: skip
            if context.main:
                write_record(self.folder / path, record)
            context.accelerator.wait_for_everyone()
        self.results = self.results.model_copy(update={"measured": {**self.results.measured, str(path): key}})
        return str(path)

    def _picture(self, name: str, generator: Candidate) -> None:
        if self.context.main:
            self.sheets.write(self.folder / sheet(name), generator)
        self.results = self.results.model_copy(update={"grid": {**self.results.grid, name: sheet(name)}})


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
