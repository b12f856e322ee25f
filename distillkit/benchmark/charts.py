"""The report's charts, as SVG."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distillkit.benchmark.leaderboard import Leaderboard
from distillkit.benchmark.results import Results, Run

COLOURS = ("#0b62a8", "#c8501e", "#2a8a4a", "#8a4fb0", "#a8860b", "#1e96a0", "#b03060", "#5a6470")
MARKERS = "osD^vPX*"


def cost_curves(results: Results, board: Leaderboard) -> str:
    """Quality on the way of every training against its cost, one line for each seed."""
    with _axes("forward-equivalents of training", board.label) as (axes, svg):
        for number, row in enumerate(board.students):
            for run in (run for run in results.runs if run.entry == row.name and run.curve):
                _line(axes, run, row.name if run.seed == row.runs[0].seed else "", number)
        if axes.lines:
            axes.set_yscale("log")
        else:
            axes.text(0.5, 0.5, "no figures were measured during the trainings", ha="center", transform=axes.transAxes)
        axes.axvline(results.suite.budget, color="#777777", lw=1, ls=":")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.0f}k" if value < 1e6 else f"{value / 1e6:g}M")
    return svg[0]


def _line(axes: Any, run: Run, label: str, number: int) -> None:
    axes.plot(
        [point.cost for point in run.curve], [point.value for point in run.curve], label=label or None,
        color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)], ms=4, lw=1.4, alpha=0.85,
    )  # fmt: skip


def sampling_time(board: Leaderboard) -> str:
    """Quality against the time of one sample: the teacher at several numbers of steps, every student at its own."""
    with _axes("milliseconds for one sample, in batches", board.label) as (axes, svg):
        teachers = sorted((row for row in board.teachers if row.images_per_second), key=lambda row: row.nfe)
        if teachers:
            axes.plot(
                [1000 / row.images_per_second for row in teachers], [row.mean for row in teachers], color="#333333",
                marker="o", ms=4, lw=1.2, label="teacher",
            )  # fmt: skip
        for row in teachers:
            steps = row.name.partition(", ")[2]
            axes.annotate(steps, (1000 / row.images_per_second, row.mean), xytext=(5, 5), fontsize=8,
                          textcoords="offset points", color="#333333")  # fmt: skip
        names = [row.name for row in board.students]
        for table in board.tables.values():
            for row in (row for row in table if not row.is_teacher and row.images_per_second):
                number, own = names.index(row.name), row.nfe == round(board.students[names.index(row.name)].nfe)
                axes.errorbar(
                    1000 / row.images_per_second, row.mean, yerr=row.error, ls="", capsize=2, ms=6,
                    color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)],
                    label=row.name if own else f"{row.name}, NFE {row.nfe:g}", alpha=1.0 if own else 0.5,
                )  # fmt: skip
        if axes.lines:
            axes.set_xscale("log")
            axes.set_yscale("log")
    return svg[0]


@contextmanager
def _axes(x: str, y: str) -> Iterator[tuple[Any, list[str]]]:
    """Axes to draw on; the SVG's text, which stays text, is in the list when the context has ended."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    svg: list[str] = []
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": x, "font.family": "sans-serif", "font.size": 10}):
        figure = Figure(figsize=(6.2, 4.4), layout="constrained")
        axes = figure.subplots()
        yield axes, svg
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(visible=True, which="major", color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
        if axes.get_legend_handles_labels()[1]:
            figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    svg.append(text[text.index("<svg") :])
