"""What a run shows before it starts (`--dry-run`) and after it ends."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from distillkit.evaluation.digits import decimals, fixed, with_error
from distillkit.progress import Terminal, clock
from distillkit.registry import registry
from distillkit.runs.config import to_yaml

if TYPE_CHECKING:
    from pydantic import BaseModel

    from distillkit.evaluation.compare import Table as Comparison
    from distillkit.evaluation.record import Quoted, Record
    from distillkit.jobs.run import Run


def console() -> Terminal:
    """Standard output; 100 columns where there is no terminal to ask."""
    out = Terminal()
    return out if out.is_terminal else Terminal(width=100)


def figures_table(title: str, name: str, *columns: str) -> Table:
    """A table that fits 80 columns: long names are folded, figures are never cut or wrapped."""
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False,
                  pad_edge=False, padding=(0, 1, 0, 0))  # fmt: skip
    table.add_column(name, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def suggest_run(out: Terminal, teacher: str, *, prompts: bool = False) -> None:
    """The command that distils this teacher, and the methods there are.

    Args:
        prompts: whether it needs a list of prompts.
    """
    methods = ", ".join(sorted(registry().named("methods"))) or "none is installed"
    out.print(
        f"next: distillkit run METHOD --teacher {shlex.quote(teacher)}{' --prompts FILE' * prompts}   "
        f"(METHOD: {methods})", highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip


def show_plan(config: BaseModel, rows: list[tuple[str, str]]) -> None:
    """The resolved configuration and what the run would do, without doing it."""
    out = console()
    out.print(to_yaml(config), highlight=False, markup=False)
    table = Table(title="Plan", show_header=False, title_justify="left")
    for row in rows:
        table.add_row(*row)
    out.print(table)


def show_result(run: Run) -> None:
    """The closing table, where everything is, and the next command."""
    out, rows, summary = console(), run.rows, run.summary
    record = run.record
    table = Table()
    table.add_column("generator", overflow="fold")
    if record:
        table.add_column(record.label, justify="right", no_wrap=True)
    for title in ("NFE", "samples/s", "speed-up"):
        table.add_column(title, justify="right", no_wrap=True)
    figures = [row.record.figures[record.label] if row.record and record else None for row in rows]
    known = [figure for figure in figures if figure]
    places = decimals([f.value for f in known], [f.standard_error for f in known])
    for row, found in zip(rows, figures, strict=True):
        figure = [with_error(found.value, found.standard_error, places) if found else "-"] if record else []
        speed_up = f"{row.images_per_second / max(rows[0].images_per_second, 1e-9):.1f}x"
        table.add_row(row.name, *figure, f"{row.nfe:g}", f"{row.images_per_second:,.0f}", speed_up)
    if out.measure(table, options=out.options.update(max_width=1000)).maximum > out.width:
        # In 80 columns the frame is what there is no room for.
        table.show_edge = table.pad_edge = False
    out.print(table)
    if record:
        out.print(
            f"{record.label}: {record.protocol.meaning} Protocol {record.protocol.name}, {record.protocol_id}.",
            highlight=False, markup=False,
        )  # fmt: skip
        for name in (name for name in record.figures if name != record.label and "/" not in name.partition("[")[0]):
            measured = [(row.name, row.record.figures.get(name)) for row in rows if row.record]
            others = ", ".join(f"{figure.text} ({generator})" for generator, figure in measured if figure)
            out.print(f"{name}: {others}", highlight=False, markup=False)
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
        f"next: distillkit sample {shlex.quote(str(run.folder))} --seed 0 --output grid.png", highlight=False,
        soft_wrap=True, markup=False,
    )  # fmt: skip


def show_records(out: Terminal, made: list[tuple[Record, Path]]) -> None:
    """The figures of an evaluation, where the records lie, and what to do with them."""
    records = [record for record, _ in made]
    if all(len(record.figures) == 1 for record in records):
        _show_one_figure(out, records)
    else:
        for record in records:
            _show_all_figures(out, record)
    first = made[0][0]
    out.print(f"protocol {first.protocol_id} ({first.protocol.name})", highlight=False)
    out.print(f"{first.label}: {first.protocol.meaning}", markup=False, highlight=False)
    for remark in dict.fromkeys(r for record, _ in made for r in (*record.subject.remarks, *record.remarks)):
        out.print(f"note: {remark}", markup=False, highlight=False)
    for _, path in made:
        out.print(f"record in {path}", markup=False, highlight=False, soft_wrap=True)
    out.print("next: distillkit compare " + shlex.join(str(path) for _, path in made) + " OTHER", markup=False,
              highlight=False, soft_wrap=True)  # fmt: skip


def _show_one_figure(out: Terminal, records: list[Record]) -> None:
    """The protocol's own figure of several generators."""
    figures = [record.figure for record in records]
    places = decimals([f.value for f in figures], [f.standard_error for f in figures])
    known = any(figure.corrected is not None for figure in figures)
    table = figures_table(records[0].label, "measured", "NFE", "value ± error", *["bias-corrected"] * known)
    for record, figure in zip(records, figures, strict=True):
        corrected = [fixed(figure.corrected, places)] * known
        value = with_error(figure.value, figure.standard_error, places)
        table.add_row(record.subject.name, _nfe(record), value, *corrected)
    out.print(table)


def _show_all_figures(out: Terminal, record: Record) -> None:
    """All figures of one generator; each has digits of its own."""
    at = "" if record.nfe is None else f", NFE {record.nfe:g}"
    table = figures_table(f"{record.subject.name}{at}", "figure", "value ± error", "bias-corrected")
    for label, figure in record.figures.items():
        places = decimals([figure.value], [figure.standard_error])
        value = with_error(figure.value, figure.standard_error, places)
        table.add_row(label, value, fixed(figure.corrected, places))
    out.print(table)


def _nfe(record: Record | Quoted) -> str:
    return "-" if record.nfe is None else f"{record.nfe:g}"


def show_comparison(out: Terminal, tables: list[Comparison], quoted: list[Quoted]) -> None:
    """A table for each protocol, then the quoted figures apart."""
    for compared in tables:
        figures = [line.record.figures[compared.label] for line in compared.lines]
        places = decimals([f.value for f in figures], [f.standard_error for f in figures])
        table = figures_table(f"{compared.label}  {compared.protocol_id}", "", "NFE", "value ± error",
                              "bias-\ncorrected", "difference to\nbest (paired)")  # fmt: skip
        for line, figure in zip(compared.lines, figures, strict=True):
            apart = with_error(line.difference, line.difference_error, places, sign=True)
            difference = apart if line.difference or line.difference_error is not None else "best"
            table.add_row(
                line.record.subject.name, _nfe(line.record),
                with_error(figure.value, figure.standard_error, places), fixed(figure.corrected, places), difference,
            )  # fmt: skip
        out.print(table)
    if quoted:
        table = Table("published (quoted)", "NFE", "figure", "value", "protocol", "source", title="not comparable",
                      title_justify="left")  # fmt: skip
        for record in quoted:
            cells = (record.name, _nfe(record), record.label, f"{record.value:g}", record.protocol, record.source)
            table.add_row(*cells)
        out.print(table)
