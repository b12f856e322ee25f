"""The report: one HTML file that needs no network, the same in Markdown, both from results.json and the records."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from PIL import Image

from distillkit.benchmark import charts
from distillkit.benchmark.leaderboard import Leaderboard, Standing
from distillkit.benchmark.palette import PALETTE
from distillkit.benchmark.results import Results, picture
from distillkit.benchmark.verdicts import (
    answers,
    beside,
    errors_are,
    findings,
    hardware,
    how_sure,
    paired,
    sample_time,
    seeds_of,
    table_decimals,
)  # fmt: skip
from distillkit.evaluation.digits import decimals, fixed, with_error
from distillkit.files import write_bytes
from distillkit.progress import clock
from distillkit.text import markdown

HTML, MARKDOWN = "report.html", "report.md"


def write_report(folder: Path, results: Results, board: Leaderboard) -> list[Path]:
    """Write report.html and report.md beside the results."""
    written = []
    for name, text in pages(folder, results, board).items():
        write_bytes(folder / name, text.encode())
        written.append(folder / name)
    return written


def pages(folder: Path, results: Results, board: Leaderboard) -> dict[str, str]:
    """The report's files by name: their text."""
    loader, escape = PackageLoader("distillkit.benchmark"), select_autoescape(["html.j2"])
    templates = Environment(loader=loader, undefined=StrictUndefined, autoescape=escape)
    templates.filters["markdown"] = markdown
    values = _values(folder, results, board)
    return {name: templates.get_template(f"{name}.j2").render(**values) for name in (HTML, MARKDOWN)}


def _values(folder: Path, results: Results, board: Leaderboard) -> dict[str, Any]:
    """Everything that the templates show."""
    first = next(iter(board.records.values()))
    done = [run for run in results.runs if run.state == "done"]
    return {
        "suite": results.suite,
        "board": board,
        "created": results.created.replace("T", " "),
        "seeds": f"{seeds_of(board)} training {'seed' if seeds_of(board) == 1 else 'seeds'}",
        "published": [PublishedLine.of(row, results, board) for row in board.published],
        "answers": answers(board),
        "beside": list(beside(results, board)),
        "findings": list(findings(results, board)),
        "how_sure": how_sure(board),
        "errors_are": errors_are(board),
        "tables": [Table.of(nfe, rows, results) for nfe, rows in board.tables.items()],
        "others": list(_others(board)),
        "teachers": TeacherTable.of(board.teachers) if board.teachers else None,
        "ablations": board.ablations(results),
        "first_runs": [
            run
            for entry in results.suite.methods
            for run in done
            if (run.entry, run.seed) == (entry, results.suite.first_seed)
        ],
        "cost_chart": charts.cost_curves(results, board),
        "changes_steps": charts.changes_steps(results),
        "front_chart": charts.front(board),
        "pictures": list(_pictures(folder, results, board)),
        "palette": PALETTE,
        "command": results.environment.get("command", ""),
        "hardware": hardware(results.environment),
        "version": results.environment.get("versions", {}).get("distillkit", ""),
        "suite_yaml": _yaml(results.suite.model_dump(mode="json", exclude_defaults=True)),
        "protocol_yaml": _yaml(first.protocol.model_dump(mode="json")),
        "yaml": _yaml,
        "with_error": with_error,
        "paired": paired,
        "count": lambda value: f"{value:,.0f}",
    }


@dataclass(frozen=True)
class Line:
    """One row of a table, as it is shown."""

    name: str
    note: str
    kind: str
    value: str
    apart: str
    standard_errors: str
    corrected: str
    training: str
    images: str
    sample: str
    strip: Markup


@dataclass(frozen=True)
class Table:
    """The generators of one number of evaluations, the best first."""

    nfe: int
    lines: list[Line]
    ticks: Markup
    log: bool
    corrected: bool

    @property
    def strips(self) -> bool:
        """Whether there is something to compare by eye."""
        return len(self.lines) > 1

    @classmethod
    def of(cls, nfe: int, rows: Sequence[Standing], results: Results) -> Table:
        axis, places = charts.strip_axis(rows), table_decimals(rows)
        apart_places = decimals(
            [row.to_best.value for row in rows if row.to_best], [row.to_best.error for row in rows if row.to_best]
        )
        lines = []
        for row in rows:
            entry, apart = results.suite.methods.get(row.name), row.to_best
            sure = f"{apart.standard_errors:.1f} SE" if apart and apart.standard_errors else ""
            lines.append(
                Line(
                    row.name, entry.note if entry and not row.is_teacher else "", charts.kind(row),
                    with_error(row.mean, row.error, places),
                    "" if row.is_teacher else paired(apart, min(places, apart_places)), sure,
                    "" if row.corrected is None else fixed(row.corrected, places),
                    clock(row.seconds) if row.seconds else "", f"{row.images:,.0f}" if row.images else "",
                    sample_time(row.images_per_second), charts.strip(row, axis),
                )
            )  # fmt: skip
        corrected = any(row.corrected is not None for row in rows)
        return cls(nfe, lines, charts.strip_ticks(axis), axis.log, corrected)


@dataclass(frozen=True)
class PublishedLine:
    """One generator that others have trained, as it is shown."""

    name: str
    note: str
    nfe: str
    value: str
    apart: str
    standard_errors: str
    best: str
    sample: str

    @classmethod
    def of(cls, row: Standing, results: Results, board: Leaderboard) -> PublishedLine:
        entry, apart = results.suite.published.get(row.name), row.to_best
        trained = [other.name for other in board.tables.get(round(row.nfe), []) if not other.is_teacher]
        return cls(
            row.name, entry.note if entry else "", f"{row.nfe:g}",
            with_error(row.mean, row.error, table_decimals(board.published)),
            "" if apart is None else paired(apart),
            f"{apart.standard_errors:.1f} SE" if apart and apart.standard_errors else "",
            trained[0] if trained and apart else "", sample_time(row.images_per_second),
        )  # fmt: skip


def _others(board: Leaderboard) -> Iterator[OtherFigures]:
    """The other figures at each number of evaluations, published students last."""
    counts = {*board.tables, *(round(row.nfe) for row in board.published)}
    for nfe in sorted(counts):
        published = [replace(row, name=f"{row.name}, published") for row in board.published if round(row.nfe) == nfe]
        rows = [*board.tables.get(nfe, []), *published]
        if any(row.others for row in rows):
            yield OtherFigures.of(nfe, rows)


@dataclass(frozen=True)
class OtherFigures:
    """What the protocol measures beside its own figure: a column for each, the generators in the order of their rank,
    teachers first."""

    nfe: int
    names: list[str]
    lines: list[tuple[str, list[str]]]

    @classmethod
    def of(cls, nfe: int, rows: Sequence[Standing]) -> OtherFigures:
        names = list(dict.fromkeys(name for row in rows for name in row.others))
        columns = []
        for name in names:
            found = [row.other(name) for row in rows]
            places = decimals([f[0] for f in found if f], [f[1] for f in found if f])
            columns.append([with_error(f[0], f[1], places) if f else "" for f in found])
        lines = [(row.name, list(cells)) for row, cells in zip(rows, zip(*columns, strict=True), strict=True)]
        return cls(nfe, [name.partition("[")[0].rpartition("/")[2] for name in names], lines)


@dataclass(frozen=True)
class TeacherTable:
    """The teacher at several numbers of solver steps: (steps, evaluations, value, bias-corrected, time of a sample)."""

    lines: list[tuple[str, str, str, str, str]]
    corrected: bool

    @classmethod
    def of(cls, rows: Sequence[Standing]) -> TeacherTable:
        places = table_decimals(rows)
        lines = [
            (
                row.name.partition(", ")[2].partition(" ")[0], f"{row.nfe:,.0f}",
                with_error(row.mean, row.error, places), "" if row.corrected is None else fixed(row.corrected, places),
                sample_time(row.images_per_second),
            )
            for row in sorted(rows, key=lambda row: row.nfe)
        ]  # fmt: skip
        return cls(lines, any(row.corrected is not None for row in rows))


@dataclass(frozen=True)
class Picture:
    """Samples of one generator. `shape` says how much room it needs: "tile" (a density), "sheet" or "row"."""

    name: str
    caption: str
    source: str
    shape: str


def _pictures(folder: Path, results: Results, board: Leaderboard) -> Iterator[Picture]:
    """The teacher's samples, then the students' in the order of their rank, then those of published ones."""
    captions = {"teacher": "what the students learn from"} if "teacher" in results.grid else {}
    for nfe, rows in board.tables.items():
        places = table_decimals(rows)
        students = [row for row in rows if not row.is_teacher]
        for rank, row in enumerate(students, 1):
            known = (f"{row.name}, NFE {nfe}", row.name)
            name = next((name for name in known if name in results.grid and name not in captions), "")
            if name:
                value = with_error(row.mean, row.error, places)
                captions[name] = f"{rank} of {len(students)} at NFE {nfe}: {value}"
    for row in board.published:
        if row.name in results.grid:
            captions[row.name] = f"published, NFE {row.nfe:g}: {with_error(row.mean, row.error)}"
    for name, caption in captions.items():
        data = picture(folder, results.grid[name])
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            shape = "row" if image.width > 3 * image.height else "tile" if image.width == image.height else "sheet"
        yield Picture(name, caption, f"data:image/png;base64,{base64.b64encode(data).decode()}", shape)


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
