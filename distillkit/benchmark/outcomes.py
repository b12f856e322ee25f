"""What became of a benchmark's trainings, by what is in its folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from distillkit.benchmark.jobs import PUBLISHED, Job
from distillkit.benchmark.results import Point, Run, read_results
from distillkit.benchmark.suite import Suite
from distillkit.errors import DistillkitError
from distillkit.reading import json_lines
from distillkit.runs.folder import CONFIG, RunFolder

log = logging.getLogger(__name__)

LARGEST_METRICS = 2**30

State = Literal["done", "interrupted", "to do", "cannot run"]


def run_folder(folder: Path, job: Job) -> RunFolder:
    """Of a job, in a benchmark's folder."""
    return RunFolder(folder / "runs" / job.name, f"distillkit run {job.method.name if job.method else ''}")


def state_of(folder: Path, job: Job) -> State:
    """What is there of a job in a benchmark's folder."""
    if job.problem:
        return "cannot run"
    if job.published:
        return "done" if (folder / record_of(job)).is_file() else "to do"
    run = run_folder(folder, job)
    return "done" if run.finished else "interrupted" if (run / CONFIG).is_file() else "to do"


def record_of(job: Job) -> Path:
    """The record of a published generator, relative to the benchmark's folder."""
    return Path("records") / f"{job.name}.json"


def known_records(folder: Path) -> dict[str, str]:
    """What the records that are in a benchmark's folder were measured of."""
    try:
        return read_results(folder).measured
    except DistillkitError:
        return {}


def about_run(suite: Suite, job: Job) -> dict[str, Any]:
    """What is known of a run before it is made."""
    kind = "published" if job.published else "training"
    method = PUBLISHED if job.published else suite.method_of(job.entry)
    known = {"entry": job.entry, "method": method, "package": job.package, "seed": job.seed, "key": job.key}
    return {"kind": kind, **known}


def failed_run(suite: Suite, job: Job, reason: str) -> Run:
    """A failure as a result."""
    return Run(**about_run(suite, job), state="failed", reason=reason)


def failure(run: Run) -> str:
    """A failure in a line."""
    seed = "" if run.kind == "published" else f", seed {run.seed}"
    return f"failed: {run.entry}{seed} ({run.package}): {run.reason}"


def require_some(jobs: Sequence[Job]) -> None:
    """Refuse a benchmark of which nothing can be run.

    Raises:
        DistillkitError: with every entry's reason.
    """
    if all(job.problem for job in jobs):
        raise DistillkitError("none of the entries can be run:\n  " + "\n  ".join(problems_of(jobs)))


def problems_of(jobs: Sequence[Job]) -> Iterator[str]:
    """What is wrong with entries, each once whatever the number of its trainings."""
    return iter(dict.fromkeys(f"{job.entry}: {job.problem}" for job in jobs if job.problem))


def curve(run: Path) -> Iterator[Point]:
    """The figures that a run measured on its way; lines of its metrics that are none are passed over and reported."""
    for entry in json_lines(run / "metrics.jsonl", most=LARGEST_METRICS, say=log.warning):
        if found := entry.get("evaluation"):
            try:
                figure = {key: found.get(key) for key in ("value", "error", "nfe")}
                yield Point(cost=entry["cost"], images=entry["images"], **figure)
            except (AttributeError, KeyError, ValueError):
                log.warning("%s: a malformed evaluation was skipped", run / "metrics.jsonl")
