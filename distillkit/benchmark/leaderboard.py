"""Who is better, and how sure that is: means over training seeds, standard errors, paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from distillkit.benchmark.results import Results, Run, inside
from distillkit.errors import DistillkitError
from distillkit.evaluation.frechet import jackknife_error
from distillkit.evaluation.record import Figure, Record, read_record

STUDENT = (12.7, 4.3, 3.2, 2.8, 2.6, 2.4, 2.4, 2.3, 2.3)
"""Student's t: standard errors that hold the truth 95 % of the time, for 1 to 9 degrees of freedom; 2 for more."""


@dataclass(frozen=True)
class Difference:
    """a - b with its standard error, where one is known.

    Args:
        seeds: that the error is estimated from; 0 where it covers the evaluation's samples alone.
    """

    value: float
    error: float | None
    seeds: int = 0

    @property
    def standard_errors(self) -> float | None:
        """How many standard errors it is away from nothing."""
        return abs(self.value) / self.error if self.error else None

    @property
    def is_significant(self) -> bool:
        """Whether it is more than two standard errors away from nothing."""
        return self.standard_errors is not None and self.standard_errors > 2

    @property
    def needed(self) -> float:
        """Standard errors that a difference of so few seeds needs for 95 % certainty."""
        return STUDENT[self.seeds - 2] if 2 <= self.seeds < len(STUDENT) + 2 else 2.0

    @property
    def is_settled(self) -> bool:
        """Whether it is significant however few the seeds."""
        return self.is_significant and (self.standard_errors or 0.0) > self.needed


@dataclass(frozen=True)
class Standing:
    """One generator at one number of evaluations.

    Args:
        figures: one for each training seed, in order.
        to_best: its value minus the best trained student's; None for the best one and for teachers, and for published
            ones where none was trained at their number of evaluations.
        others: what the protocol measures beside its own figure, by name, as `figures`.
    """

    name: str
    nfe: float
    figures: tuple[Figure, ...]
    images_per_second: float
    runs: tuple[Run, ...] = ()
    to_best: Difference | None = None
    others: Mapping[str, tuple[Figure, ...]] = field(default_factory=dict)

    @property
    def is_teacher(self) -> bool:
        return not self.runs

    @property
    def is_published(self) -> bool:
        """Whether others have trained it."""
        return any(run.kind == "published" for run in self.runs)

    @property
    def values(self) -> list[float]:
        return [figure.value for figure in self.figures]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def corrected(self) -> float | None:
        """The bias-corrected mean: without the estimator's bias of order 1/N."""
        known = [figure.corrected for figure in self.figures if figure.corrected is not None]
        return statistics.fmean(known) if len(known) == len(self.figures) else None

    @property
    def error(self) -> float | None:
        """Standard error of the mean: of the evaluation's samples, and of the training seeds where they are several."""
        return _error(self.values, _mean_left_out(self.figures))

    def other(self, name: str) -> tuple[float, float | None] | None:
        """Mean and standard error of another figure; None where it was not measured."""
        if not (found := self.others.get(name)):
            return None
        values = [figure.value for figure in found]
        return statistics.fmean(values), _error(values, _mean_left_out(found))

    @property
    def cost(self) -> float:
        """Forward-equivalents of a training."""
        return statistics.fmean(sum(run.cost.values()) for run in self.runs) if self.runs else 0.0

    @property
    def seconds(self) -> float:
        return statistics.fmean(run.seconds for run in self.runs) if self.runs else 0.0

    @property
    def images(self) -> float:
        return statistics.fmean(run.images for run in self.runs) if self.runs else 0.0


def difference(a: Standing, b: Standing) -> Difference:
    """Between two generators that were measured on the same noise: what both share is no uncertainty.

    Seeds are paired too (the same seed is the same noise and the same order of data), where both have them all.
    """
    seeds = [{run.seed for run in side.runs} for side in (a, b)]
    paired = seeds[0] == seeds[1]
    apart = [x - y for x, y in zip(a.values, b.values, strict=True)] if paired else []
    left_a, left_b = _mean_left_out(a.figures), _mean_left_out(b.figures)
    left = [x - y for x, y in zip(left_a, left_b, strict=True)] if len(left_a) == len(left_b) else []
    error = _error(apart, left)
    if not paired:
        parts = [_error(side.values, ()) or 0.0 for side in (a, b)]
        error = math.hypot(error or 0.0, *parts) or None
    # What others have trained has no seeds of trainings, from which a spread could be estimated.
    fewest = min([len(side.values) for side in (a, b) if not side.is_published] or [1])
    return Difference(a.mean - b.mean, error, fewest if fewest > 1 else 0)


def _mean_left_out(figures: Sequence[Figure]) -> list[float]:
    """The mean figure without each group of samples; empty where that is not known."""
    lengths = {len(figure.leave_one_out) for figure in figures}
    if len(lengths) != 1 or 0 in lengths:
        return []
    return [statistics.fmean(values) for values in zip(*(f.leave_one_out for f in figures), strict=True)]


def _error(values: Sequence[float], left_out: Sequence[float]) -> float | None:
    """Between seeds and, by the jackknife, of the samples that all of them share: two independent sources."""
    parts = []
    if len(values) > 1:
        parts.append(statistics.stdev(values) / math.sqrt(len(values)))
    if left_out:
        parts.append(jackknife_error(left_out))
    return math.hypot(*parts) if parts else None


@dataclass(frozen=True)
class Leaderboard:
    """All measured generators under one protocol.

    Args:
        tables: number of evaluations -> standings of trained students and teachers, the best first.
        published: those that others have trained, the fewest evaluations first.
        failed: runs without a result.
    """

    label: str
    protocol_id: str
    tables: dict[int, list[Standing]]
    teachers: list[Standing]
    failed: list[Run]
    records: dict[str, Record]
    published: list[Standing] = field(default_factory=list)

    @property
    def students(self) -> list[Standing]:
        """Every student once, at its fewest evaluations, the best first."""
        seen: dict[str, Standing] = {}
        for table in self.tables.values():
            for row in table:
                if not row.is_teacher:
                    seen.setdefault(row.name, row)
        return sorted(seen.values(), key=lambda row: row.mean)

    def ablations(self, results: Results) -> list[tuple[Standing, Standing, Difference]]:
        """(entry, what it is an ablation of, difference) at the same number of evaluations."""
        found = []
        for table in self.tables.values():
            by_name = {row.name: row for row in table}
            for name, row in by_name.items():
                entry = results.suite.methods.get(name)
                whole = by_name.get(entry.ablation_of) if entry else None
                if whole:
                    found.append((row, whole, difference(row, whole)))
        return found


def leaderboard(folder: Path, results: Results) -> Leaderboard:
    """Read a benchmark's records and rank them.

    Raises:
        DistillkitError: when no training succeeded, or a record is missing, was edited, or was measured under another
            protocol than the rest.
    """
    done = [run for run in results.runs if run.state == "done"]
    if not done:
        reasons = "".join(f"\n  {run.title}: {run.reason}" for run in results.failed)
        raise DistillkitError(f"no entry in {folder} succeeded, so there is nothing to compare{reasons}")
    records = {name: _measured(inside(folder, name)) for name in _names(results, done)}
    protocols = {record.protocol_id for record in records.values()}
    if len(protocols) > 1:
        raise DistillkitError(f"the records in {folder} were measured under several protocols: {sorted(protocols)}")
    first = next(iter(records.values()))
    teachers = [
        Standing(
            _steps(record),
            _nfe(record),
            (record.figures[record.label],),
            record.images_per_second or 0.0,
            others=_others([record]),
        )
        for record in (records[name] for name in results.teacher_records)
    ]
    students = _students(done, records)
    standings = [*teachers, *(row for row in students if not row.is_published)]
    tables: dict[int, list[Standing]] = {}
    for row in sorted(standings, key=lambda row: (row.nfe, row.mean)):
        tables.setdefault(round(row.nfe), []).append(row)
    ranked = {nfe: _ranked(rows) for nfe, rows in tables.items() if any(not row.is_teacher for row in rows)}
    published = sorted((row for row in students if row.is_published), key=lambda row: (row.nfe, row.mean))
    apart = [replace(row, to_best=_to_best(row, ranked.get(round(row.nfe), []))) for row in published]
    return Leaderboard(first.label, first.protocol_id, ranked, teachers, results.failed, records, apart)


def _names(results: Results, done: list[Run]) -> list[str]:
    return [*results.teacher_records, *(name for run in done for name in run.records)]


def _measured(path: Path) -> Record:
    record = read_record(path)
    if not isinstance(record, Record):
        raise DistillkitError(f"{path} is a quoted figure, not a measured one")
    return record


def _students(done: list[Run], records: dict[str, Record]) -> list[Standing]:
    groups: dict[tuple[str, int], list[tuple[Run, Record]]] = {}
    for run in done:
        for name in run.records:
            groups.setdefault((run.entry, round(_nfe(records[name]))), []).append((run, records[name]))
    standings = []
    for (entry, nfe), found in groups.items():
        found.sort(key=lambda pair: pair[0].seed)
        figures = tuple(record.figures[record.label] for _, record in found)
        speed = statistics.fmean(record.images_per_second or 0.0 for _, record in found)
        others = _others([record for _, record in found])
        standings.append(Standing(entry, nfe, figures, speed, tuple(run for run, _ in found), others=others))
    return standings


def _others(records: Sequence[Record]) -> dict[str, tuple[Figure, ...]]:
    """The figures beside the protocol's own that all records have."""
    names = [name for name in records[0].figures if name != records[0].label]
    return {
        name: tuple(record.figures[name] for record in records)
        for name in names
        if all(name in record.figures for record in records)
    }


def _to_best(row: Standing, table: Sequence[Standing]) -> Difference | None:
    """Between a published student and the best that was trained here at the same number of evaluations."""
    trained = [other for other in table if not other.is_teacher]
    return difference(row, trained[0]) if trained else None


def _ranked(rows: list[Standing]) -> list[Standing]:
    best = min((row for row in rows if not row.is_teacher), key=lambda row: row.mean)
    return [row if row is best or row.is_teacher else replace(row, to_best=difference(row, best)) for row in rows]


def _steps(record: Record) -> str:
    steps = record.subject.sampler["steps"]
    return f"teacher, {steps} {'step' if steps == 1 else 'steps'}"


def _nfe(record: Record) -> float:
    return record.nfe or 0.0
