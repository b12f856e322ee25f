"""What the tables say, in words: which method is best, how sure that is, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from distillkit.benchmark.leaderboard import Difference, Leaderboard, Standing
from distillkit.benchmark.results import Results
from distillkit.evaluation.digits import decimals, with_error
from distillkit.progress import clock


@dataclass(frozen=True)
class Answer:
    """Which student is best at one number of evaluations.

    Args:
        figure: its value with the standard error.
        certainty: how the others compare. cost: of a training and of a sample.
    """

    nfe: int
    best: Standing
    figure: str
    certainty: str
    cost: str

    def __str__(self) -> str:
        text = f"At {evaluations(self.nfe)}, {self.best.name} is best with {self.figure}"
        return f"{text}; {self.certainty}" if self.certainty else f"{text}."


def answers(board: Leaderboard) -> list[Answer]:
    """One for each number of evaluations, the fewest first."""
    found = []
    for nfe, rows in board.tables.items():
        students = [row for row in rows if not row.is_teacher]
        best, places = students[0], table_decimals(rows)
        found.append(
            Answer(nfe, best, with_error(best.mean, best.error, places), _certainty(students[1:]), _cost(best, board))
        )
    return found


def findings(results: Results, board: Leaderboard) -> Iterator[str]:
    """What the tables say, with no more certainty than there is."""
    for answer in answers(board):
        yield str(answer)
    yield from beside(results, board)


def beside(results: Results, board: Leaderboard) -> Iterator[str]:
    """What there is to say beside the answers: the teacher, ablations, failures."""
    teacher = min(board.teachers, key=lambda row: row.mean, default=None)
    if teacher and teacher.nfe > 1:
        places = decimals([row.mean for row in board.teachers], [row.error for row in board.teachers])
        figure = with_error(teacher.mean, teacher.error, places)
        yield f"The teacher is best with {teacher.nfe:g} evaluations: {figure}."
    for row, whole, apart in board.ablations(results):
        certainty = f" ({apart.standard_errors:.1f} SE)" if apart.standard_errors else ""
        verdict = f"is {'worse' if apart.value > 0 else 'better'} than"
        if apart.error is not None and not apart.is_significant:
            verdict = "is not significantly different (< 2 SE) from"
        difference = with_error(apart.value, apart.error, sign=True)
        yield f"{row.name} {verdict} {whole.name}: {difference}{certainty}."
    for row in board.published:
        yield _against(row, board)
    for run in board.failed:
        yield f"{run.title}, failed: {run.reason.splitlines()[0]}"


def _against(row: Standing, board: Leaderboard) -> str:
    """A published student, and how the best trained one compares with it."""
    figure = with_error(row.mean, row.error)
    begin = f"{row.name}, published, has {figure} at {evaluations(round(row.nfe))}"
    trained = [other for other in board.tables.get(round(row.nfe), []) if not other.is_teacher]
    if row.to_best is None or not trained:
        return f"{begin}; nothing was trained here for as many."
    apart = row.to_best
    certainty = f" ({apart.standard_errors:.1f} SE)" if apart.standard_errors else ""
    verdict = "worse than" if apart.value > 0 else "better than"
    if apart.error is not None and not apart.is_significant:
        verdict = "not significantly different (< 2 SE) from"
    elif apart.is_significant and not apart.is_settled:
        verdict = f"by more than 2 SE, which so few seeds leave open, {verdict}"
    return f"{begin}: {verdict} {trained[0].name}, by {with_error(apart.value, apart.error, sign=True)}{certainty}."


def how_sure(board: Leaderboard) -> str:
    """What the standard errors cover, and what few seeds leave open."""
    seeds, samples = seeds_of(board), _of_samples(board)
    if not seeds:
        return "SE: standard error, which covers the evaluation's samples alone. Nothing was trained here."
    if seeds == 1:
        held = "the evaluation's samples alone" if samples else "nothing: the figure is computed without sampling error"
        return (
            f"SE: standard error, which covers {held}. With one training seed, the spread between trainings is not "
            "known: this ranks these trainings, not yet the methods."
        )
    held = f"the evaluation's samples and the {seeds} training seeds" if samples else (
        f"the {seeds} training seeds (the figure itself is computed without sampling error)"
    )  # fmt: skip
    text = f"SE: standard error, which covers {held}."
    needed = min((row.to_best.needed for rows in board.tables.values() for row in rows if row.to_best), default=2.0)
    if needed > 2:
        text += f" {seeds} seeds are few: for 95 % certainty a difference needs {needed:.1f} SE, not 2."
    return text


def errors_are(board: Leaderboard) -> str:
    """How the columns of the tables are made."""
    parts = []
    if _of_samples(board):
        parts.append("of the evaluation's samples by a delete-a-group jackknife")
    if seeds_of(board) > 1:
        parts.append(f"of the {seeds_of(board)} training seeds")
    said = [f"± is a standard error: {' and '.join(parts)}."] if parts else []
    rows = [*(row for table in board.tables.values() for row in table), *board.published]
    if any(row.to_best is not None for row in rows):
        said.append("Differences to the best are paired: all generators start from the same noise.")
    if any(row.corrected is not None for row in rows):
        said.append("Bias-corrected is the value without the estimator's bias of order 1/N.")
    if seeds_of(board):
        said.append(
            "Cost is in forward-equivalents (an evaluation with gradient counts three); the teacher's passes for the "
            "data and auxiliary networks count too. Training time is wall time, evaluations included."
        )
    return " ".join(said)


def hardware(environment: dict[str, Any]) -> str:
    """Where it was measured, with what."""
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
    where = environment.get("accelerator") or f"{environment.get('cpus')} cores of {environment.get('processor')}"
    return f"Measured on {where}, {environment.get('threads')} threads; {versions}; {environment.get('platform')}."


def table_decimals(rows: Sequence[Standing]) -> int:
    """Decimals that all figures of a table are shown with."""
    return decimals([row.mean for row in rows], [row.error for row in rows])


def paired(apart: Difference | None, places: int | None = None) -> str:
    """'+0.00012 ± 0.00010', or 'best'."""
    return "best" if apart is None else with_error(apart.value, apart.error, places, sign=True)


def evaluations(nfe: int) -> str:
    return f"{nfe} evaluation{'' if nfe == 1 else 's'}"


def sample_time(images_per_second: float) -> str:
    """'15 µs', '1.2 ms' or '3.4 s' for a sample; empty where it is not known."""
    if not images_per_second:
        return ""
    seconds = 1 / images_per_second
    unit, size = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e-3)) if seconds >= s), ("µs", 1e-6))
    value = seconds / size
    return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"


def _certainty(others: Sequence[Standing]) -> str:
    """How sure it is that these are worse than the best."""
    apart = {row.name: row.to_best for row in others if row.to_best}
    known = {name: by for name, by in apart.items() if by.error is not None}
    settled = [name for name, by in known.items() if by.is_settled]
    groups = (
        ("not significantly different (< 2 SE)", [name for name, by in known.items() if not by.is_significant]),
        ("significantly worse (> {needed} SE)", settled),
        (
            "worse by more than 2 SE, which so few seeds leave open",
            [name for name, by in known.items() if by.is_significant and name not in settled],
        ),
        ("worse, by a difference whose standard error is not known", [name for name in apart if name not in known]),
    )
    needed = max((by.needed for by in apart.values()), default=2.0)
    parts = [
        f"{_listed(names)} {'is' if len(names) == 1 else 'are'} {words.format(needed=f'{needed:.2g}')}"
        for words, names in groups if names
    ]  # fmt: skip
    return f"{'; '.join(parts)}." if parts else ""


def _cost(best: Standing, board: Leaderboard) -> str:
    """'33 s of training, 452,096 images; 15 µs a sample, 5 times as fast as the teacher with 99 evaluations.'"""
    parts = [f"{_duration(best.seconds)} of training, {best.images:,.0f} images"] if best.seconds else []
    if best.images_per_second:
        text = f"{sample_time(best.images_per_second)} a sample"
        teacher = min(board.teachers, key=lambda row: row.mean, default=None)
        if teacher and teacher.images_per_second:
            faster = best.images_per_second / teacher.images_per_second
            text += f", {faster:.{0 if faster >= 10 else 1}f} times as fast as the teacher"
            text += f" with {evaluations(round(teacher.nfe))}"
        parts.append(text)
    return f"{'; '.join(parts)}." if parts else ""


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{clock(seconds)} {'min' if seconds < 3600 else 'h'}"


def seeds_of(board: Leaderboard) -> int:
    """Trainings that every student has: fewer than the suite's where some failed or are still to do."""
    return min((len(row.runs) for row in board.students), default=0)


def _of_samples(board: Leaderboard) -> bool:
    """Whether the errors cover the evaluation's samples."""
    return all(f.leave_one_out for rows in board.tables.values() for row in rows for f in row.figures)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
