"""What a run shows before it starts (`--dry-run`) and after it ends."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distillkit.progress import clock
from distillkit.registry import registry
from distillkit.runs.config import to_yaml

if TYPE_CHECKING:
    from pydantic import BaseModel

    from distillkit.evaluation.compare import Table as Comparison
    from distillkit.evaluation.record import Quoted, Record
    from distillkit.jobs.run import Run


def console() -> Console:
    """Standard output; 100 columns where there is no terminal to ask."""
    out = Console()
    return out if out.is_terminal else Console(width=100)


def suggest_run(out: Console, teacher: str) -> None:
    """The command that distils this teacher, and the methods there are."""
    methods = ", ".join(sorted(registry().named("methods"))) or "none is installed"
    out.print(f"next: distillkit run METHOD --teacher {teacher}   (METHOD: {methods})", highlight=False, soft_wrap=True)


def show_plan(config: BaseModel, rows: list[tuple[str, str]]) -> None:
    """The resolved configuration and what the run would do, without doing it."""
    out = console()
    out.print(to_yaml(config), highlight=False, markup=False)
    table = Table(title="Plan", show_header=False, title_justify="left")
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


def show_result(run: Run) -> None:
    """The closing table, where everything is, and the next command."""
    out, rows, summary = console(), run.rows, run.summary
    record = run.record
    table = Table()
    table.add_column("generator")
    if record:
        table.add_column(escape(record.label), justify="right")
    for title in ("NFE", "samples/s", "speed-up"):
        table.add_column(title, justify="right")
    for row in rows:
        figure = [row.record.figures[record.label].text if row.record else "-"] if record else []
        speed_up = f"{row.images_per_second / max(rows[0].images_per_second, 1e-9):.1f}x"
        table.add_row(row.name, *figure, f"{row.nfe:g}", f"{row.images_per_second:,.0f}", speed_up)
    out.print(table)
    if record:
        out.print(
            f"{record.label}: {record.protocol.meaning} Protocol {record.protocol.name}, {record.protocol_id}.",
            highlight=False, markup=False,
        )  # fmt: skip
    else:
        out.print("no figure of quality was measured (no protocol); `distillkit evaluate` measures the student later",
                  highlight=False)  # fmt: skip
    if best := summary["selection"].get("best_step"):
        out.print(
            f"best of {summary['selection']['evaluated']} checkpoints looked at: step {best:,} "
            f"({summary['selection']['best_value']:.5f}, of other seeds), kept as {run.folder}@best",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
    if run.health:
        out.print(f"health: {', '.join(f'{name} {state}' for name, state in run.health.items())}", highlight=False)
    out.print(f"took {clock(summary['seconds'])}; everything is in {run.folder}", highlight=False, soft_wrap=True,
              markup=False)  # fmt: skip
    out.print(
        f"next: distillkit sample {shlex.quote(str(run.folder))} --num 64 --seed 0 --output grid.png", highlight=False,
        soft_wrap=True, markup=False,
    )  # fmt: skip


def show_records(out: Console, made: list[tuple[Record, Path]]) -> None:
    """The figures of an evaluation, where the records lie, and what to do with them."""
    table = Table()
    for title in ("measured", "NFE", "figure", "value", "± error", "bias-corrected"):
        table.add_column(
            title, justify="left" if title in ("measured", "figure") else "right", no_wrap=title == "figure"
        )
    for record, _ in made:
        nfe = "-" if record.nfe is None else f"{record.nfe:g}"
        for label, figure in record.figures.items():
            error = "-" if figure.standard_error is None else f"{figure.standard_error:.2g}"
            corrected = "-" if figure.corrected is None else f"{figure.corrected:.5g}"
            table.add_row(record.subject.name, nfe, escape(label), f"{figure.value:.5g}", error, corrected)
    out.print(table)
    first = made[0][0]
    out.print(f"protocol {first.protocol_id} ({first.protocol.name})", highlight=False)
    out.print(f"{first.label}: {first.protocol.meaning}", markup=False, highlight=False)
    for remark in dict.fromkeys(r for record, _ in made for r in (*record.subject.remarks, *record.remarks)):
        out.print(f"note: {remark}", markup=False, highlight=False)
    for _, path in made:
        out.print(f"record in {path}", markup=False, highlight=False, soft_wrap=True)
    out.print("next: distillkit compare " + " ".join(str(path) for _, path in made) + " OTHER...", markup=False,
              highlight=False, soft_wrap=True)  # fmt: skip


def show_comparison(out: Console, tables: list[Comparison], quoted: list[Quoted]) -> None:
    """A table for each protocol, then the quoted figures apart."""
    for compared in tables:
        table = Table(title=f"{escape(compared.label)}  {compared.protocol_id}", title_justify="left")
        for title in ("", "NFE", "value", "± error", "bias-corrected", "difference to best (paired)"):
            table.add_column(title, justify="right" if title else "left")
        for line in compared.lines:
            figure = line.record.figures[compared.label]
            error = "-" if figure.standard_error is None else f"{figure.standard_error:.2g}"
            corrected = "-" if figure.corrected is None else f"{figure.corrected:.5g}"
            paired = "" if line.difference_error is None else f" ± {line.difference_error:.2g}"
            difference = f"{line.difference:+.2g}{paired}" if line.difference or paired else "best"
            nfe = "-" if line.record.nfe is None else f"{line.record.nfe:g}"
            table.add_row(line.record.subject.name, nfe, f"{figure.value:.5g}", error, corrected, difference)
        out.print(table)
    if quoted:
        table = Table("published (quoted)", "NFE", "figure", "value", "protocol", "source", title="not comparable",
                      title_justify="left")  # fmt: skip
        for record in quoted:
            nfe = "-" if record.nfe is None else f"{record.nfe:g}"
            table.add_row(
                *map(escape, (record.name, nfe, record.label, f"{record.value:g}", record.protocol, record.source))
            )
        out.print(table)
