"""`python -m tools.method_tables`: write the tables of docs/which-method.md anew, from what the installed methods of
distillkit take and from the reports in benchmarks/results. Seconds on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from distillkit.files import write_bytes
from distillkit.jobs.traits import COLUMNS, traits_of
from distillkit.models.store.resolve import default_teacher, load_teacher
from distillkit.progress import Quiet
from distillkit.registry import BUILT_IN, registry

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "which-method.md"
SUITES = ("digits", "mixture", "shapes")


def takes() -> str:
    """What every method takes on the default teacher, and what is known to go wrong with it."""
    teacher = load_teacher(default_teacher(), Quiet())
    rows = [
        (f"**{name}**", *traits_of(installed, teacher).cells, installed.value.caution)
        for name, installed in sorted(registry().named("methods").items())
        if installed.package == BUILT_IN
    ]
    return table(("method", *COLUMNS, "known to go wrong"), rows)


def measured() -> str:
    """The figures of students of one evaluation, from the committed reports."""
    reports = {suite: read_report(ROOT / "benchmarks" / "results" / suite / "report.md") for suite in SUITES}
    heads = [f"{suite}: {figure}" for suite, (figure, _) in reports.items()]
    names = sorted({name for _, figures in reports.values() for name in figures})
    rows = [(f"**{name}**", *(figures.get(name, "") for _, figures in reports.values())) for name in names]
    return table(("method", *heads), rows)


def read_report(path: Path) -> tuple[str, Mapping[str, str]]:
    """(the figure's name, {entry: figure}) of a report's table of one evaluation; ablations and teachers left out."""
    text = path.read_text(encoding="utf-8")
    part = text.partition("## 1 network evaluation")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
    methods = registry().named("methods")
    return rows[0][1], {row[0]: row[1] for row in rows[2:] if row[0] in methods}


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


END = "<!-- / -->"
TABLES = {"takes": takes, "measured": measured}


def written(page: str) -> str:
    """The page with its tables made anew, each between `<!-- NAME -->` and `<!-- / -->`."""
    for name, make in TABLES.items():
        before, start, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(END)
        if not start or not end:
            raise ValueError(f"{PAGE.name} has no place for the table {name}")
        page = before + start + make() + "\n" + end + after
    return page


if __name__ == "__main__":
    write_bytes(PAGE, written(PAGE.read_text(encoding="utf-8")).encode())
