"""What `distillkit bench` shows: the plan before, the tables after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from distillkit.benchmark.leaderboard import leaderboard
from distillkit.benchmark.report import findings, paired, write_report
from distillkit.cli.closing import console
from distillkit.progress import clock

if TYPE_CHECKING:
    from distillkit.benchmark.harness import Bench
    from distillkit.benchmark.results import Results


def show_bench(folder: Path, results: Results) -> None:
    """Write the report; show its tables, what they say, and where it lies."""
    out, board = console(), leaderboard(folder, results)
    written = write_report(folder, results, board)
    for nfe, rows in board.tables.items():
        table = Table(title=f"{escape(board.label)} at NFE {nfe}", title_justify="left")
        for title in ("generator", "value", "± error", "to the best, paired", "cost", "time", "images/s"):
            table.add_column(title, justify="left" if title == "generator" else "right")
        for row in rows:
            table.add_row(
                row.name, f"{row.mean:.5f}", "" if row.error is None else f"{row.error:.2g}",
                "" if row.is_teacher else paired(row.to_best), f"{row.cost:,.0f}" if row.cost else "",
                clock(row.seconds) if row.seconds else "", f"{row.images_per_second:,.0f}",
            )  # fmt: skip
        out.print(table)
    for finding in findings(results, board):
        out.print(f"- {finding}", markup=False, highlight=False)
    out.print(f"protocol {board.protocol_id}; {results.suite.seeds} seed(s); cost in forward-equivalents", markup=False,
              highlight=False)  # fmt: skip
    out.print("report: " + ", ".join(map(str, written)), markup=False, highlight=False, soft_wrap=True)
    out.print(f"next: open {written[0]}, or compare with your own: distillkit compare {folder}/records RECORD...",
              markup=False, highlight=False, soft_wrap=True)  # fmt: skip


def show_bench_plan(work: Bench) -> None:
    """Every training with its cost, state and time."""
    out, suite = console(), work.suite
    out.print(
        f"suite {suite.name}: teacher {suite.teacher}, protocol {suite.protocol or 'of the teacher'}, "
        f"{suite.budget:,} forward-equivalents each, {suite.seeds} seed(s)", highlight=False, markup=False,
    )  # fmt: skip
    table = Table("entry", "seed", "an image costs", "pairs cost", "images", "time", "state")
    total, speeds = 0.0, {}
    for job in work.plan():
        if job.config is None:
            table.add_row(job.entry, str(job.seed), escape(job.problem), "", "", "", "cannot run")
            continue
        if job.entry not in speeds:
            speeds[job.entry] = work.seconds_of(job)
        assert job.passes is not None
        state = work.state(job)
        total += speeds[job.entry] if state != "done" else 0
        table.add_row(
            job.entry, str(job.seed), f"{sum(job.passes.values()):g}", f"{job.pairs_cost:,}",
            f"{job.config.training.duration:,}", f"about {clock(speeds[job.entry])}", state,
        )  # fmt: skip
    out.print(table)
    device = work.accelerator.device
    out.print(
        f"about {clock(total)} for the trainings that are to do, on {device}; measuring comes on top\n"
        f"nothing was written to {work.folder}",
        highlight=False,
        markup=False,
    )
