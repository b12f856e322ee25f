"""A benchmark as a function, `distillkit.bench`, and what it would do; the command line calls exactly these."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from distillkit.benchmark.harness import Bench
from distillkit.benchmark.jobs import Job, precision_of
from distillkit.benchmark.leaderboard import Leaderboard, leaderboard
from distillkit.benchmark.measures import measure_of
from distillkit.benchmark.outcomes import State, require_some
from distillkit.benchmark.published import to_download
from distillkit.benchmark.report import write_report
from distillkit.benchmark.results import Results, Run, read_results
from distillkit.benchmark.suite import Suite, chosen, default_suite, load_suite
from distillkit.benchmark.verdicts import findings, paired, table_decimals
from distillkit.benchmark.workers.side_by_side import Workers, side_by_side
from distillkit.downloads import nothing_downloaded
from distillkit.errors import DistillkitError
from distillkit.evaluation.digits import with_error
from distillkit.jobs.context import TIMEOUT, Context, job_context
from distillkit.jobs.launcher import TRAINING
from distillkit.models.store.resolve import resolve
from distillkit.runs.folder import RunFolder


class BenchResult:
    """A benchmark's folder: what was measured, who is better, and the report.

    >>> result = bench("my-suite.yaml", methods=["./my_method.py", "dmd"], seeds=3)    # doctest: +SKIP
    >>> result.leaderboard.students[0].name                                            # doctest: +SKIP

    Args:
        folder: as `bench` or `distillkit bench` made it.

    Raises:
        UsageError: where there are no results.
        DistillkitError: where they are damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.results: Results = read_results(self.folder)

    @cached_property
    def leaderboard(self) -> Leaderboard:
        """All generators, ranked.

        Raises:
            DistillkitError: when every training failed, or a record is missing or was edited.
        """
        return leaderboard(self.folder, self.results)

    @property
    def failed(self) -> list[Run]:
        """The trainings and published generators that failed, with the reason of each."""
        return self.results.failed

    @property
    def findings(self) -> list[str]:
        """What the tables say, in words."""
        return list(findings(self.results, self.leaderboard))

    def report(self) -> list[Path]:
        """Write report.html and report.md into the folder; returns their paths."""
        return write_report(self.folder, self.results, self.leaderboard)

    def __repr__(self) -> str:
        done = [run.kind for run in self.results.runs if run.state == "done"]
        published = f", {done.count('published')} published" if "published" in done else ""
        trained = f"{done.count('training')} trainings"
        return f"BenchResult({str(self.folder)!r}, {trained}{published}, {len(self.failed)} failed)"

    def _repr_html_(self) -> str:
        try:
            board = self.leaderboard
        except DistillkitError as error:
            return html.escape(str(error))
        tables = []
        for nfe, rows in board.tables.items():
            places = table_decimals(rows)
            lines = "".join(
                f"<tr><td>{html.escape(row.name)}</td><td>{with_error(row.mean, row.error, places)}</td>"
                f"<td>{'' if row.is_teacher else html.escape(paired(row.to_best, places))}</td></tr>"
                for row in rows
            )
            tables.append(
                f"<table><caption>{html.escape(board.label)}, NFE {nfe}</caption><thead><tr><th>generator</th>"
                "<th>value ± error</th><th>difference to best (paired)</th></tr></thead>"
                f"<tbody>{lines}</tbody></table>"
            )
        if board.published:
            places, compared = table_decimals(board.published), any(row.to_best for row in board.published)
            lines = "".join(
                f"<tr><td>{html.escape(row.name)}</td><td>{row.nfe:g}</td>"
                f"<td>{with_error(row.mean, row.error, places)}</td>"
                + (f"<td>{html.escape(paired(row.to_best)) if row.to_best else ''}</td>" if compared else "")
                + "</tr>"
                for row in board.published
            )
            tables.append(
                f"<table><caption>{html.escape(board.label)}, published students</caption><thead><tr><th>published</th>"
                "<th>NFE</th><th>value ± error</th>"
                + ("<th>difference to the best trained (paired)</th>" if compared else "")
                + f"</tr></thead><tbody>{lines}</tbody></table>"
            )
        return "".join(tables) + f"<p>{html.escape(str(self.folder))}</p>"


def bench(
    suite: str | Path | Suite | None = None,
    *,
    methods: Sequence[str] = (),
    seeds: int | None = None,
    budget: int | None = None,
    data: str | Path | None = None,
    prompts: str | Path | None = None,
    protocol: str | Path | None = None,
    output_dir: str | Path | None = None,
    device: str = "auto",
    quiet: bool = False,
    timeout: float = TIMEOUT,
    workers: Workers | None = None,
) -> BenchResult:
    """Compare methods at one cost, from one teacher, under one protocol; what `distillkit bench` does.

    What is done already is kept: the same call goes on after an interruption, and makes anew only what has changed.

    >>> bench("digits", workers=Workers(jobs=4))    # doctest: +SKIP

    Args:
        suite: a suite's name, its YAML file, or a `Suite`; the one of the embedded teacher by default.
        methods: entries of the suite, published generators among them, installed methods, or Python files that define
            one; all entries by default.
        seeds: trainings of each; the suite's number by default.
        budget: forward-equivalents of each training; the suite's by default.
        data: real images, for methods that need them and teachers without their own.
        prompts: to train with, for teachers that make pictures of text: a file, or hf:ORG/NAME:COLUMN.
        protocol: of all figures: a name, or a file of `reference make`; the suite's by default.
        output_dir: folder of results and runs; bench/SUITE by default.
        device: "auto", "cpu", "cuda" or "mps".
        quiet: no progress.
        timeout: seconds for which one of several processes may keep the others waiting.
        workers: how many trainings are done at one time, and where; one after the other in this process by default.

    Raises:
        UsageError: for a suite, method or number that does not fit; says which.
        DistillkitError: when nothing could be compared; a method that fails does not stop the others.
        Interrupted: after SIGINT or SIGTERM, with everything kept.
    """
    asked = _asked(suite, methods, seeds, budget, data, protocol, prompts)
    folder = _folder(asked, output_dir)
    if workers is not None and not workers.this_process:
        side_by_side(asked, folder, workers, device=device, quiet=quiet, timeout=timeout)
        result = BenchResult(folder)
        result.report()
        return result
    with _context(asked, device, quiet=quiet, timeout=timeout) as context:
        reference = resolve(asked.teacher, asked.pipeline)
        reference.check()
        if not reference.available:
            # What cannot be measured is not worth a download.
            measure_of(asked, reference.fresh(0))
        teacher = reference.load(context.reporter, context.stopped)
        with RunFolder(folder, "distillkit bench").locked(main=context.main):
            Bench(asked, folder, teacher, context).run()
            context.accelerator.wait_for_everyone()
            result = BenchResult(folder)
            if context.main:
                result.report()
    return result


@dataclass(frozen=True)
class PlannedJob:
    """A training before it begins; `seconds` is None where the time cannot be estimated."""

    job: Job
    state: State
    seconds: float | None


@dataclass(frozen=True)
class BenchPlan:
    """What a benchmark would do."""

    suite: Suite
    folder: Path
    protocol: str
    device: str
    jobs: list[PlannedJob]
    downloads: tuple[str, ...] = ()
    workers: Workers = field(default_factory=Workers)

    @property
    def seconds(self) -> float:
        """Of the trainings that are still to do."""
        return sum(self._to_do)

    @property
    def wall_seconds(self) -> float:
        """Of the same trainings, handed to the workers in turn, each with devices of its own."""
        ends = [0.0] * self.workers.jobs
        for seconds in self._to_do:
            ends[ends.index(min(ends))] += seconds
        return max(ends)

    @property
    def _to_do(self) -> list[float]:
        return [planned.seconds or 0.0 for planned in self.jobs if planned.state != "done"]


def plan(
    suite: str | Path | Suite | None = None,
    *,
    methods: Sequence[str] = (),
    seeds: int | None = None,
    budget: int | None = None,
    data: str | Path | None = None,
    prompts: str | Path | None = None,
    protocol: str | Path | None = None,
    output_dir: str | Path | None = None,
    device: str = "auto",
    workers: Workers | None = None,
) -> BenchPlan:
    """What `bench` would do with the same arguments, what it would cost and how long it would take. Nothing is written
    or downloaded: a teacher that is not there is stood in for by one with random weights.

    Raises:
        UsageError, DistillkitError: as `bench`.
    """
    asked = _asked(suite, methods, seeds, budget, data, protocol, prompts)
    folder = _folder(asked, output_dir)
    reference = resolve(asked.teacher, asked.pipeline)
    reference.check()
    with _context(asked, device, quiet=True) as context, nothing_downloaded() as needed:
        if not reference.available:
            needed.names.extend(f"the teacher {name}" for name in reference.absent)
        needed.names.extend(name for entry in asked.published.values() for name in to_download(entry))
        teacher = reference.skeleton(context.reporter)
        work = Bench(asked, folder, teacher, context)
        times: dict[str, float | None] = {}
        jobs = []
        for job in work.plan():
            if job.entry not in times:
                times[job.entry] = _seconds(work, job)
            jobs.append(PlannedJob(job, work.state(job), times[job.entry]))
        require_some([planned.job for planned in jobs])
        return BenchPlan(
            asked, folder, work.protocol, str(context.device), jobs, tuple(needed.names), workers or Workers()
        )


def _seconds(work: Bench, job: Job) -> float | None:
    if job.problem:
        return None
    if job.published:
        return 0.0
    try:
        return work.seconds_of(job)
    except DistillkitError:
        return None


def _asked(
    suite: str | Path | Suite | None, methods: Sequence[str], seeds: int | None, budget: int | None,
    data: str | Path | None, protocol: str | Path | None, prompts: str | Path | None,
) -> Suite:  # fmt: skip
    whole = suite if isinstance(suite, Suite) else load_suite(suite or default_suite())
    return chosen(whole, methods=methods, seeds=seeds, budget=budget, data=data, protocol=protocol, prompts=prompts)


def _folder(suite: Suite, output_dir: str | Path | None) -> Path:
    return Path(output_dir).expanduser() if output_dir else Path("bench") / suite.name


@contextmanager
def _context(suite: Suite, device: str, *, quiet: bool, timeout: float = TIMEOUT) -> Iterator[Context]:
    with job_context(
        precision=precision_of(suite), device=device, quiet=quiet, timeout=timeout, settled=TRAINING
    ) as context:
        yield context
