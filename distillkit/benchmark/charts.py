"""The report's charts: rank with its uncertainty, quality while training, quality against network evaluations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from distillkit.benchmark.axes import Axis, counts, focused
from distillkit.benchmark.leaderboard import Leaderboard, Standing
from distillkit.benchmark.palette import colour, dashes
from distillkit.benchmark.results import Results, Run
from distillkit.benchmark.svg import Plot, room

LONGEST = 26
"""Letters of a label; longer names are cut, the tables have them whole."""


def kind(row: Standing) -> str:
    """The class that gives a row its colour."""
    if row.is_published:
        return "published"
    return "teacher" if row.is_teacher else f"m{colour(row.runs[0])}"


def strip_axis(rows: Sequence[Standing]) -> Axis:
    """The axis that the strips of one table share: of the means, and long enough for the errors of those on it."""
    reach = {row.name: 2 * (row.error or 0.0) for row in rows}
    axis = focused([row.mean for row in rows], [low for row in rows if (low := row.mean - reach[row.name]) > 0])
    return replace(axis, high=max([axis.high, *(row.mean + reach[row.name] for row in rows if axis.holds(row.mean))]))


def strip(row: Standing, axis: Axis) -> Markup:
    """One row's mean with two standard errors to both sides; an arrow with its value where it is beyond the axis."""
    if not axis.holds(row.mean):
        arrow = f'<text x="100%" y="50%" dy=".35em" text-anchor="end">{row.mean:.3g} ▶</text>'
        return Markup(f'<svg class="strip {kind(row)}" width="100%" height="22" aria-hidden="true">{arrow}</svg>')
    middle, reach = axis.share(row.mean), 2 * (row.error or 0.0)
    low, high = (min(1.0, max(0.0, axis.share(row.mean + side * reach))) for side in (-1, 1))
    return Markup(
        f'<svg class="strip {kind(row)}" width="100%" height="22" aria-hidden="true">'
        f'<line x1="{100 * low:.1f}%" x2="{100 * high:.1f}%" y1="11" y2="11"/>'
        f'<circle cx="{100 * middle:.1f}%" cy="11" r="5"/></svg>'
    )


def strip_ticks(axis: Axis) -> Markup:
    """The ticks above the strips."""
    ticks: list[float] = []
    for tick in axis.ticks():
        if not ticks or axis.share(tick) - axis.share(ticks[-1]) > 0.25:
            ticks.append(tick)
    texts = [f'<text x="{100 * axis.share(x):.1f}%" y="13" text-anchor="middle">{x:g}</text>' for x in ticks]
    return Markup(f'<svg class="strip ticks" width="100%" height="18" aria-hidden="true">{"".join(texts)}</svg>')


@dataclass(frozen=True)
class Moment:
    """The seeds of an entry at one moment of their training."""

    cost: float
    mean: float
    low: float
    high: float
    nfe: float | None


def moments(runs: Sequence[Run]) -> list[Moment]:
    """Mean, lowest and highest figure over seeds, where all of them have one that is finite."""
    curves = [{point.images: point for point in run.curve if math.isfinite(point.value)} for run in runs]
    shared = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    found = []
    for images in shared:
        points = [curve[images] for curve in curves]
        values = [point.value for point in points]
        cost = statistics.fmean(point.cost for point in points)
        found.append(Moment(cost, statistics.fmean(values), min(values), max(values), points[0].nfe))
    return found


def cost_curves(results: Results, board: Leaderboard) -> Markup | None:
    """Quality on the way of every training against its cost: the mean over seeds, and a band around it.

    The band goes from the best seed to the worst. None where no training was measured on its way.
    """
    curves = [(row, found) for row in board.students if (found := moments(row.runs))]
    if not curves:
        return None
    y = focused([found[-1].mean for _, found in curves], [moment.mean for _, found in curves for moment in found])
    most = max(results.suite.budget or 0, *(found[-1].cost for _, found in curves))
    named = [(found[-1].mean, _short(row.name), kind(row)) for row, found in curves]
    inside = [(plot_y, name, own) for plot_y, name, own in named if y.holds(plot_y)]
    plot = Plot(Axis(0.0, most, log=False), y, right=room(name for _, name, _ in inside))
    strokes = _dashes(results, board)
    lines = [
        plot.band([(m.cost, m.high) for m in found], [(m.cost, m.low) for m in found], kind(row))
        for row, found in curves if len(row.runs) > 1
    ]  # fmt: skip
    lines += [
        plot.line([(m.cost, m.mean) for m in found], f'class="{kind(row)}" stroke-dasharray="{strokes[row.name]}"')
        for row, found in curves
    ]
    shapes = [plot.inside(lines), *(_steps(plot, row, found) for row, found in curves), plot.labels(most, inside)]
    title = f"{board.label} while training, mean over seeds; at the end: " + ", ".join(
        f"{row.name} {found[-1].mean:.3g}" for row, found in sorted(curves, key=lambda curve: curve[1][-1].mean)
    )
    ticks = [(x, _thousands(x)) for x in plot.x.ticks()]
    beyond = [label for label in named if not y.holds(label[0])]
    return Markup(plot.frame(title, shapes, ticks, ("forward-equivalents of training", _lower(board, y)), beyond))


def changes_steps(results: Results) -> list[str]:
    """Entries whose student changes its number of evaluations on the way: 'progressive 16 → 1'."""
    found = {}
    for run in results.runs:
        counted = [point.nfe for point in run.curve if point.nfe is not None]
        if counted and len(set(counted)) > 1:
            found[run.entry] = f"{run.entry} {counted[0]:g} → {counted[-1]:g}"
    return list(found.values())


def _steps(plot: Plot, row: Standing, found: Sequence[Moment]) -> str:
    """Dots with the student's number of evaluations where that changes."""
    if len({moment.nfe for moment in found}) < 2:
        return ""
    shapes, before = [], None
    for moment in found:
        if moment.nfe != before and moment.nfe is not None and plot.y.holds(moment.mean):
            shapes.append(plot.dot(moment.cost, moment.mean, 'class="hollow"'))
            shapes.append(plot.text(moment.cost, moment.mean, f"{moment.nfe:g}", dy=-9, style='text-anchor="middle"'))
        before = moment.nfe
    return f'<g class="{kind(row)}">{"".join(shapes)}</g>'


def front(board: Leaderboard) -> Markup:
    """Quality against network evaluations of a sample: students, the teacher at several numbers of steps, and the line
    of those that nothing with as few evaluations beats; published students beside the line."""
    trained = [row for table in board.tables.values() for row in table if not row.is_teacher]
    students = [*trained, *board.published]
    rows = [*students, *board.teachers]
    y = focused([row.mean for row in students], [row.mean for row in board.teachers])
    x = counts(row.nfe for row in rows)
    columns: dict[int, list[Standing]] = {}
    for row in rows:
        columns.setdefault(round(row.nfe), []).append(row)
    best = pareto([*trained, *board.teachers])
    first, last = min(columns), max(columns)
    named = {
        nfe: [(row.mean, _short(row.name), kind(row)) for row in _to_name(found, best, all_of_them=nfe == first)
              if y.holds(row.mean)]
        for nfe, found in columns.items()
    }  # fmt: skip
    plot = Plot(x, y, left=48 + room(name for _, name, _ in named[first]))
    shapes = [plot.inside([
        plot.line(_stairs(best, x), 'class="front"') if best else "",
        plot.line(sorted((row.nfe, row.mean) for row in board.teachers), 'class="teacher thin"'),
    ])]  # fmt: skip
    for row in rows:
        if y.holds(row.mean):
            shape = "filled" if row in best else "hollow"
            shapes.append(f'<g class="{kind(row)}">{plot.dot(row.nfe, row.mean, f"class={shape!r}")}</g>')
            if row.is_teacher and round(row.nfe) != first:
                steps = row.name.partition(", ")[2].partition(" ")[0]
                side = 19 if row in best else -10
                shapes.append(plot.text(row.nfe, row.mean, steps, dy=side, style='class="tick" text-anchor="middle"'))
    shapes += [
        plot.labels(nfe, found, before=nfe == first or x.share(nfe) > 0.5) for nfe, found in named.items()
    ]  # fmt: skip
    beyond = [(row.mean, f"{_short(row.name)}{_at(row, first)}", kind(row)) for row in rows if not y.holds(row.mean)]
    title = f"{board.label} against network evaluations; not beaten at their number: " + ", ".join(
        f"{row.name} ({row.nfe:g}: {row.mean:.3g})" for row in best
    )
    power = range(math.floor(math.log2(first)), math.ceil(math.log2(max(last, 2))) + 1)
    ticks = [(2.0**n, f"{2**n:g}") for n in power if x.holds(2.0**n)]
    return Markup(plot.frame(title, shapes, ticks, ("network evaluations of a sample (NFE)", _lower(board, y)), beyond))


def pareto(rows: Sequence[Standing]) -> list[Standing]:
    """Those that none with as few evaluations is better than, by evaluations."""
    found: list[Standing] = []
    for row in sorted(rows, key=lambda row: (row.nfe, row.mean)):
        if not found or row.mean < found[-1].mean:
            found.append(row)
    return found


def _stairs(best: Sequence[Standing], x: Axis) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    for row in best:
        if points:
            points.append((row.nfe, points[-1][1]))
        points.append((row.nfe, row.mean))
    return [*points, (x.high, points[-1][1])]


def _to_name(found: Sequence[Standing], best: Sequence[Standing], *, all_of_them: bool) -> list[Standing]:
    """Whose names a column has: all in the first; later the students on the front and the best one."""
    students = sorted((row for row in found if not row.is_teacher), key=lambda row: row.mean)
    return [*found] if all_of_them else [row for row in students if row in best or row is students[0]]


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _at(row: Standing, first: int) -> str:
    """Which of a student's places is meant, where it is not that of the fewest evaluations."""
    return "" if row.is_teacher or round(row.nfe) == first else f" at NFE {row.nfe:g}"


def _dashes(results: Results, board: Leaderboard) -> dict[str, str]:
    runs = {row.name: row.runs[0] for row in board.students}
    return dashes((entry, runs[entry]) for entry in results.suite.methods if entry in runs)


def _lower(board: Leaderboard, y: Axis) -> str:
    return f"{board.label}, lower is better{' (logarithmic)' if y.log else ''}"


def _thousands(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"
