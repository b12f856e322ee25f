"""`python -m tools.method_tables`: write the tables of the documents anew, from what the installed methods of
distillkit take and from the reports in benchmarks/results. Seconds on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from distillkit.benchmark.leaderboard import Leaderboard
from distillkit.benchmark.run import BenchResult
from distillkit.benchmark.verdicts import paired, table_decimals
from distillkit.evaluation.digits import decimals, with_error
from distillkit.files import write_bytes
from distillkit.jobs.traits import COLUMNS, traits_of
from distillkit.models.store.resolve import default_teacher, load_teacher
from distillkit.progress import Quiet
from distillkit.registry import BUILT_IN, registry

ROOT = Path(__file__).resolve().parents[1]
SUITES = ("digits", "mixture", "shapes")


def takes() -> str:
    """What every method takes on the default teacher, and what is known to go wrong with it."""
    teacher = load_teacher(default_teacher(), Quiet())
    rows = [
        (f"**{name}**", *traits_of(installed, teacher).cells, installed.value.caution)
        for name, installed in sorted(registry().named("methods").items())
        if installed.package == BUILT_IN
    ]
    return table(("method", *COLUMNS, "known to go wrong"), rows, align="---")


def measured() -> str:
    """The figures of students of one evaluation, of every suite; ablations and teachers left out."""
    boards = {suite: board_of(suite) for suite in SUITES}
    found = {suite: values_of(board, 1) for suite, board in boards.items()}
    methods = registry().named("methods")
    names = sorted({name for values in found.values() for name in values if name in methods})
    heads = [f"{suite}: {board.label}" for suite, board in boards.items()]
    rows = [(f"**{name}**", *(values.get(name, "") for values in found.values())) for name in names]
    return table(("method", *heads), rows)


def ranking(suite: str) -> str:
    """All generators of one evaluation, with their differences to the best and the images that the budget paid for."""
    board = board_of(suite)
    values, apart = values_of(board, 1), [row.to_best for row in board.tables[1] if row.to_best]
    places = decimals([found.value for found in apart], [found.error for found in apart])
    beside = {
        row.name: (paired(row.to_best, places), f"{row.runs[0].images:,}")
        for row in board.tables[1]
        if not row.is_teacher
    }
    rows = [(row.name, values[row.name], *beside.get(row.name, ("", ""))) for row in board.tables[1]]
    return table(("one network evaluation", board.label, "difference to best (paired)", "images in the budget"), rows)


def evaluations(suite: str) -> str:
    """Students of one evaluation, and of two where they can."""
    board = board_of(suite)
    one, two = values_of(board, 1), values_of(board, 2)
    rows = [(row.name, one[row.name], two.get(row.name, "")) for row in board.tables[1] if not row.is_teacher]
    return table(("method", "one evaluation", "two"), rows)


def aligned(suite: str) -> str:
    """Students of one evaluation with a suite's first other figure."""
    board = board_of(suite)
    rows = [row for row in board.tables[1] if not row.is_teacher]
    name = next(iter(rows[0].others))
    found = {row.name: other for row in rows if (other := row.other(name))}
    places = decimals([value for value, _ in found.values()], [error for _, error in found.values()])
    others = {row: with_error(value, error, places) for row, (value, error) in found.items()}
    values = values_of(board, 1)
    return table(
        ("method", board.label, name), [(row.name, values[row.name], others.get(row.name, "")) for row in rows]
    )


@cache
def board_of(suite: str) -> Leaderboard:
    return BenchResult(ROOT / "benchmarks" / "results" / suite).leaderboard


def values_of(board: Leaderboard, nfe: int) -> Mapping[str, str]:
    """The figures of all generators of so many evaluations, with their errors."""
    rows = board.tables.get(nfe, [])
    return {row.name: with_error(row.mean, row.error, table_decimals(rows)) for row in rows}


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], align: str = "---:") -> str:
    lines = [head, ("---", *(align for _ in head[1:])), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


END = "<!-- / -->"
PAGES: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    ROOT / "README.md": {"digits": partial(ranking, "digits")},
    ROOT / "docs" / "index.md": {"digits": partial(ranking, "digits")},
    ROOT / "docs" / "benchmarks.md": {"mixture": partial(evaluations, "mixture"), "shapes": partial(aligned, "shapes")},
    ROOT / "docs" / "methods.md": {"digits": partial(evaluations, "digits")},
    ROOT / "docs" / "which-method.md": {"takes": takes, "measured": measured},
}


def written(path: Path) -> str:
    """A page with its tables made anew, each between `<!-- NAME -->` and `<!-- / -->`."""
    page = path.read_text(encoding="utf-8")
    for name, make in PAGES[path].items():
        before, start, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(END)
        if not start or not end:
            raise ValueError(f"{path.name} has no place for the table {name}")
        page = before + start + make() + "\n" + end + after
    return page


if __name__ == "__main__":
    for path in PAGES:
        write_bytes(path, written(path).encode())
