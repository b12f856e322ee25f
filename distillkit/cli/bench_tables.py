"""What `distillkit bench` shows: the plan before, the tables after."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from rich.table import Table

from distillkit.benchmark.report import HTML, MARKDOWN
from distillkit.benchmark.verdicts import how_sure, paired, sample_time, table_decimals
from distillkit.cli.closing import console, figures_table
from distillkit.evaluation.digits import with_error
from distillkit.progress import clock

if TYPE_CHECKING:
    from distillkit.benchmark.leaderboard import Leaderboard
    from distillkit.benchmark.run import BenchPlan, BenchResult


def show_bench(result: BenchResult) -> None:
    """The tables, what they say, and where the report is."""
    out, board = console(), result.leaderboard
    for nfe, rows in board.tables.items():
        table = figures_table(f"{board.label} at NFE {nfe}", "generator", "value ± error",
                              "difference to\nbest (paired)", "training\ntime", "sample\ntime")  # fmt: skip
        places = table_decimals(rows)
        for row in rows:
            table.add_row(
                row.name, with_error(row.mean, row.error, places),
                "" if row.is_teacher else paired(row.to_best, places), clock(row.seconds) if row.seconds else "",
                sample_time(row.images_per_second),
            )  # fmt: skip
        out.print(table)
        out.print()
    if board.published:
        out.print(published_table(board))
        out.print()
    for finding in result.findings:
        out.print(f"- {finding}", markup=False, highlight=False)
    suite = result.results.suite
    out.print(how_sure(board), markup=False, highlight=False)
    spent = "" if suite.budget is None else f"; {suite.budget:,} forward-equivalents a training"
    out.print(f"protocol {board.protocol_id}{spent}", markup=False, highlight=False)
    page, text = result.folder / HTML, result.folder / MARKDOWN
    out.print(f"report: {page}, {text}", markup=False, highlight=False, soft_wrap=True)
    records = shlex.quote(f"{result.folder}/records")
    out.print(
        f"next: open {shlex.quote(str(page))}, or compare with your own: distillkit compare {records} RECORD",
        soft_wrap=True,
    )


def published_table(board: Leaderboard) -> Table:
    """Generators that others have trained, which are not ranked with those that were trained here."""
    apart = any(row.to_best for row in board.published)
    heads = ["difference to the\nbest trained (paired)"] if apart else []
    table = figures_table(f"{board.label} of published students, not trained here", "published", "NFE",
                          "value ± error", *heads, "sample\ntime")  # fmt: skip
    places = table_decimals(board.published)
    for row in board.published:
        differences = [paired(row.to_best) if row.to_best else ""] if apart else []
        value = with_error(row.mean, row.error, places)
        table.add_row(row.name, f"{row.nfe:g}", value, *differences, sample_time(row.images_per_second))
    return table


def show_bench_plan(plan: BenchPlan) -> None:
    """Every training with its cost, state and time."""
    out, suite = console(), plan.suite
    out.print(
        f"suite {suite.name}: teacher {suite.teacher}, protocol {plan.protocol}, "
        + ("nothing to train" if suite.budget is None else f"{suite.budget:,} forward-equivalents each, ")
        + ("" if suite.budget is None else f"{suite.seeds} {'seed' if suite.seeds == 1 else 'seeds'}"),
        highlight=False, markup=False,
    )  # fmt: skip
    table = Table("entry", "seed", "an image costs", "its data cost", "images", "time", "state")
    for planned in plan.jobs:
        job = planned.job
        if job.published:
            table.add_row(job.entry, "published", "", "", "", "", planned.state)
            continue
        if job.config is None or job.passes is None:
            table.add_row(job.entry, str(job.seed), job.problem, "", "", "", planned.state)
            continue
        table.add_row(
            job.entry, str(job.seed), f"{sum(job.passes.values()):.4g}", f"{job.sources_cost:,}",
            f"{job.config.training.duration:,}",
            "not known" if planned.seconds is None else f"about {clock(planned.seconds)}", planned.state,
        )  # fmt: skip
    out.print(table)
    for name in plan.downloads:
        out.print(f"to be downloaded: {name}", highlight=False, markup=False)
    trained = any(planned.job.published is None for planned in plan.jobs)
    needed = (
        f"about {clock(plan.seconds)} for the trainings that are to do, on {plan.device}{_side_by_side(plan)}; "
        "evaluations come on top\n"
    )
    out.print(
        f"{needed if trained else ''}nothing was written to {plan.folder}",
        highlight=False,
        markup=False,
    )


def _side_by_side(plan: BenchPlan) -> str:
    """What several jobs at one time make of it."""
    if plan.workers.jobs == 1:
        return ""
    return f", or {clock(plan.wall_seconds)} with {plan.workers.jobs} jobs side by side on devices of their own"
