"""The harness: train every job that is not done, measure it, keep the results as they come."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from accelerate import Accelerator

from distillkit.benchmark.jobs import Job, jobs_of
from distillkit.benchmark.results import Point, Results, Run, write_results
from distillkit.benchmark.suite import Suite
from distillkit.contracts.teacher import Teacher
from distillkit.engine.interrupt import StopRequest
from distillkit.errors import DistillkitError, Interrupted
from distillkit.evaluation.record import Record, read_record
from distillkit.evaluation.sampling import balanced_labels, seeded_noise
from distillkit.pictures import save_grid
from distillkit.progress import Quiet, Reporter
from distillkit.jobs.subjects import Candidate, EvaluationOptions, candidates
from distillkit.jobs.distil import Distillation
from distillkit.jobs.evaluate import evaluate
from distillkit.runs.folder import RunFolder, environment
from distillkit.jobs.previews import COLUMNS, POINTS, drawn
from distillkit.jobs.trial import rehearse
from distillkit.students.artifact import load_student


class Bench:
    """A suite at work in its folder, which holds results.json, records/, grid/ and runs/.

    Args:
        folder: where; locked by the caller.
        teacher: the suite's, loaded.
    """

    def __init__(
        self, suite: Suite, folder: Path, teacher: Teacher, accelerator: Accelerator, reporter: Reporter,
        stop: StopRequest,
    ) -> None:  # fmt: skip
        self.suite, self.folder, self.accelerator, self.stop = suite, folder, accelerator, stop
        self.teacher = teacher.to(accelerator.device)
        self.main = accelerator.is_main_process
        self.reporter = reporter if self.main else Quiet()
        self.results = Results(
            suite=suite, environment=environment(), created=datetime.now(UTC).isoformat(timespec="seconds")
        )

    def plan(self) -> list[Job]:
        """All trainings of the suite, with their costs counted."""
        return list(jobs_of(self.suite, self.teacher, self.accelerator, self.stop))

    def seconds_of(self, job: Job) -> float:
        """About how long a training takes here, noise-image pairs included; by a rehearsal."""
        assert job.config is not None
        folder = RunFolder(self.folder / "runs" / job.name, "")
        work = Distillation(job.config, folder, self.accelerator, Quiet(), self.stop, teacher=self.teacher)
        rehearsal = rehearse(work.recipe, work.teacher, job.config.training, self.accelerator)
        made = job.config.training.duration * rehearsal.seconds_per_image
        return (made + job.pairs_cost * rehearsal.seconds_per_evaluation) / float(self.accelerator.num_processes)

    def state(self, job: Job) -> str:
        """What is there of a job: "done", "interrupted", "to do", or "cannot run"."""
        if job.problem:
            return "cannot run"
        folder = RunFolder(self.folder / "runs" / job.name, "")
        return "done" if folder.finished else "interrupted" if folder.path.is_dir() else "to do"

    def run(self) -> Results:
        """Do everything that is not done yet. A job that fails does not stop the others.

        Raises:
            Interrupted: after a signal; everything that was done is kept.
            DistillkitError: when the teacher cannot be measured.
        """
        try:
            jobs = self.plan()
            self._measure_teacher()
            for number, job in enumerate(jobs, 1):
                self.reporter.say(f"[{number}/{len(jobs)}] {job.entry}, seed {job.seed}: {self.state(job)}")
                self._keep(self._outcome(job))
        except Interrupted as stopped:
            raise Interrupted(
                "stopped; the same command goes on where it stopped, and what was done is kept", stopped.exit_code - 128
            ) from stopped
        return self.results

    def _keep(self, run: Run) -> None:
        self.results = self.results.with_run(run)
        if self.main:
            write_results(self.folder, self.results)

    def _outcome(self, job: Job) -> Run:
        """The job's run and records, made or found; a failure becomes a result too."""
        about = {"entry": job.entry, "method": job.method, "package": job.package, "seed": job.seed, "key": job.key}
        try:
            if job.config is None:
                raise DistillkitError(job.problem)
            folder = self._trained(job)
            record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
            return Run(
                **about, state="done", folder=str(folder.relative_to(self.folder)), config=record["config"],
                cost=record["cost_forward_equivalents"], images=record["config"]["training"]["duration"],
                seconds=record["seconds"], health=record["health"], curve=tuple(curve(folder)),
                records=tuple(self._measure_student(job, folder)),
            )  # fmt: skip
        except Interrupted:
            raise
        except Exception as error:  # a method may fail in any way, and the others go on
            reason = str(error) if isinstance(error, DistillkitError) else f"{type(error).__name__}: {error}"
            self.reporter.say(f"failed: {job.entry}, seed {job.seed} ({job.package}): {reason}")
            return Run(**about, state="failed", reason=reason)
        finally:
            self.accelerator.free_memory()

    def _trained(self, job: Job) -> Path:
        """The folder of the job's finished run."""
        assert job.config is not None
        folder = RunFolder(self.folder / "runs" / job.name, f"distillkit run {job.method}")
        if folder.finished:
            return folder.path
        begun = (folder / "config.yaml").is_file()
        work = Distillation(job.config, folder, self.accelerator, self.reporter, self.stop, teacher=self.teacher)
        work.prepare()
        with folder.locked(main=self.main):
            if not begun and self.main:
                folder.begin(job.config)
            self.accelerator.wait_for_everyone()
            work.run(resume=begun)
        return folder.path

    def _options(self, nfe: Iterable[int]) -> EvaluationOptions:
        return EvaluationOptions(protocol=self.suite.protocol or None, samples=self.suite.samples, nfe=tuple(nfe))

    def _measure_teacher(self) -> None:
        steps = self.suite.teacher_steps or (self.teacher.spec.solver_steps,)
        options = self._options(2 * count - 1 for count in steps)
        own, records = self.teacher.spec.solver_steps, []
        shown = own if own in steps else max(steps)
        for candidate in candidates(self.suite.teacher, options, self.accelerator.device, self.reporter):
            count = candidate.subject.sampler["steps"]
            records.append(self._measured(candidate, options, f"teacher-{count}-steps"))
            if count == shown:
                self._picture("teacher", candidate)
        self.results = self.results.model_copy(update={"teacher_records": tuple(records)})

    def _measure_student(self, job: Job, folder: Path) -> list[str]:
        """Records at the student's own number of evaluations and at those of the suite that its sampler can do."""
        student = load_student(folder)
        own, evaluations = round(student.description.nfe), {round(student.description.nfe)}
        for nfe in self.suite.nfe:
            try:
                student.generator.sampler.with_nfe(nfe)
                evaluations.add(nfe)
            except ValueError:
                continue
        options = self._options(sorted(evaluations))
        records = []
        found = candidates(str(folder), options, self.accelerator.device, self.reporter)
        for nfe, candidate in zip(options.nfe, found, strict=True):
            candidate.subject = candidate.subject.model_copy(update={"name": job.entry})
            records.append(self._measured(candidate, options, f"{job.entry}-seed{job.seed}-nfe{nfe}"))
            if job.seed == 0:
                self._picture(job.entry if nfe == own else f"{job.entry}, NFE {nfe}", candidate)
        return records

    def _measured(self, candidate: Candidate, options: EvaluationOptions, name: str) -> str:
        """The record's path in the benchmark's folder; measured if it is not there for these very weights."""
        path = self.folder / "records" / f"{name}.json"
        if not (path.is_file() and self._holds(path, candidate)):
            evaluate([candidate], replace(options, output=path), self.accelerator, self.reporter, self.stop)
        return str(path.relative_to(self.folder))

    def _holds(self, path: Path, candidate: Candidate) -> bool:
        try:
            record = read_record(path)
        except DistillkitError:
            return False
        count = self.suite.samples or (record.protocol.samples.count if isinstance(record, Record) else 0)
        return (
            isinstance(record, Record)
            and record.subject == candidate.subject
            and record.protocol.samples.count == count
            and (not self.suite.protocol or record.protocol.name == self.suite.protocol)
        )

    @torch.inference_mode()
    def _picture(self, name: str, candidate: Candidate) -> None:
        """A row of samples from the same noise and labels for every generator."""
        if not self.main or candidate.generate is None or candidate.spec is None:
            return
        spec, device = candidate.spec, self.accelerator.device
        seeds = list(range(COLUMNS if spec.is_image else POINTS))
        noise = seeded_noise(seeds, spec.shape).to(device)
        condition = balanced_labels(range(len(seeds)), spec.num_classes).to(device)
        path = Path("grid") / f"{name.replace(', ', '-').replace(' ', '-')}.png"
        tiles = drawn(candidate.generate(noise, condition, seeds))
        save_grid(self.folder / path, tiles, min(COLUMNS, len(tiles)))
        self.results = self.results.model_copy(update={"grid": {**self.results.grid, name: str(path)}})


def curve(run: Path) -> Iterable[Point]:
    """The scores that a run wrote on its way."""
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for name, value in entry.items():
            if "[" in name and isinstance(value, float):
                yield Point(cost=entry["cost"], images=entry["images"], value=value)
