"""What the report's charts show: close figures apart, far ones at the edge, one colour a method, names apart."""

import dataclasses
import re
from collections import Counter
from xml.etree import ElementTree

import pytest

from distillkit.benchmark import charts
from distillkit.benchmark.axes import Axis, counts, focused
from distillkit.benchmark.leaderboard import Leaderboard, Standing
from distillkit.benchmark.palette import OTHERS, PALETTE, SHIPPED, colour, dashes
from distillkit.benchmark.results import Point, Results, Run
from distillkit.benchmark.suite import Suite, load_suite, shipped_suites
from distillkit.benchmark.svg import LINE, spread
from distillkit.evaluation.digits import decimals, with_error
from distillkit.evaluation.record import Figure
from distillkit.registry import registry

CLOSE = {"a": 1.0, "b": 1.05, "c": 1.1, "d": 1.15, "e": 1.2}


def run(entry, seed=0, values=(), nfe=(), **fields):
    points = [
        Point(cost=100.0 * k, images=k, value=value, nfe=nfe[k - 1] if nfe else None)
        for k, value in enumerate(values, 1)
    ]
    fields = {"method": entry, "package": "distillkit 1", **fields}
    return Run(entry=entry, seed=seed, state="done", curve=tuple(points), **fields)


def row(name, value, nfe=1, error=None, runs=None):
    left = (value - error, value + error) if error else ()
    figure = Figure(value=value, estimator="x@1", leave_one_out=left)
    return Standing(name, nfe, (figure,), 100.0, tuple(runs) if runs is not None else (run(name),))


def board(*rows, teachers=()):
    tables: dict = {}
    for one in sorted(rows, key=lambda one: (one.nfe, one.mean)):
        tables.setdefault(round(one.nfe), []).append(one)
    return Leaderboard("FD", "p1-0", tables, list(teachers), [], {})


def results(*rows, **fields):
    runs = {(r.entry, r.seed): r for one in rows for r in one.runs}
    suite = Suite(name="s", teacher="t", budget=400, methods={one.name: {} for one in rows}, **fields)
    return Results(suite=suite, runs=tuple(runs.values()))


def words(chart):
    """All that is written in a chart, which has to be well-formed."""
    return [text.strip() for text in ElementTree.fromstring(f"<div>{chart}</div>").itertext() if text.strip()]


def test_two_bad_entries_do_not_squash_five_close_ones():
    axis = focused([*CLOSE.values(), 40.0, 500.0])
    places = [axis.share(value) for value in CLOSE.values()]
    assert all(0 <= place <= 1 for place in places) and places[-1] - places[0] > 0.8
    assert not axis.holds(40.0) and not axis.holds(500.0)
    assert focused([1.0, 100.0]).holds(100.0), "of two, both are shown"
    assert focused([1.0, 2.0, 4.0, 9.0, 20.0]).holds(20.0), "there is no gap"


@pytest.mark.parametrize("values", [[], [0.3], [2.0, 2.0], [-0.01, 0.0, 0.02], [1e-9, 1e9], [float("inf"), 1.0]])
def test_any_figures_make_an_axis_with_ticks_on_it(values):
    axis = focused(values)
    ticks = axis.ticks()
    assert ticks == sorted(set(ticks)) and 1 <= len(ticks) <= 20 and all(axis.holds(tick) for tick in ticks)
    assert all(0 <= axis.share(value) <= 1 for value in values if value < float("inf"))


def test_network_evaluations_are_on_a_logarithmic_axis_to_the_base_of_two():
    axis = counts([1, 2, 35])
    assert axis.share(4) - axis.share(2) == pytest.approx(axis.share(2) - axis.share(1))
    teacher = row("teacher, 9 steps", 0.1, 17, runs=())
    shown = words(charts.front(board(row("a", 1.0), row("a", 0.9, nfe=2), teachers=[teacher])))
    assert {"1", "2", "4", "8", "16"} <= set(shown)


def test_the_front_is_what_nothing_with_as_few_evaluations_beats():
    rows = [row("a", 1.0), row("b", 2.0), row("c", 1.5, nfe=2), row("d", 0.5, nfe=4), row("t", 0.6, nfe=35, runs=())]
    assert [one.name for one in charts.pareto(rows)] == ["a", "d"]


def test_published_students_are_beside_the_front():
    """The best of all is not on the line of those that were trained here."""
    theirs = row("theirs", 0.5, runs=[run("theirs", kind="published")])
    rows = [row(name, value) for name, value in CLOSE.items()]
    both = dataclasses.replace(board(*rows), published=[theirs])
    chart = charts.front(both)
    assert charts.kind(theirs) == "published" and 'class="published"' in chart and "theirs" in words(chart)
    assert "not beaten at their number: a (1: 1)" in chart
    alone = charts.front(dataclasses.replace(board(), published=[theirs], teachers=[]))
    assert "theirs" in words(alone)


def test_charts_name_their_lines_and_mark_what_is_beyond_the_axis_with_its_value():
    rows = [row(name, value, runs=[run(name, s, [3 * value, value]) for s in (0, 1)]) for name, value in CLOSE.items()]
    rows.append(row("bad", 44.1, runs=[run("bad", s, [90.0, 44.1]) for s in (0, 1)]))
    for chart in (charts.cost_curves(results(*rows), board(*rows)), charts.front(board(*rows))):
        shown = words(chart)
        assert set(CLOSE) <= set(shown) and "bad 44.1" in " ".join(shown) and "bad" not in shown
        assert 'role="img"' in chart and "aria-label" in chart
    curves = charts.cost_curves(results(*rows), board(*rows))
    assert curves.count("<polyline") == len(rows), "one line a method, not one a seed"
    assert curves.count("<polygon") == len(rows), "and its band"


def test_a_line_whose_student_changes_its_steps_says_so():
    kept = row("kept", 1.0, runs=[run("kept", values=[1.3, 1.1, 1.0], nfe=[1, 1, 1])])
    halved = row("halved", 1.1, runs=[run("halved", values=[1.0, 1.05, 1.1], nfe=[16, 4, 1])])
    found = results(kept, halved)
    assert charts.changes_steps(found) == ["halved 16 → 1"]
    assert {"16", "4", "1"} <= set(words(charts.cost_curves(found, board(kept, halved))))
    assert "16" not in words(charts.cost_curves(results(kept), board(kept)))


def test_runs_without_curves_or_errors_draw_without_a_warning(recwarn):
    one = row("a", 1.0)
    assert charts.cost_curves(results(one), board(one)) is None
    assert words(charts.front(board(one))) and charts.strip(one, charts.strip_axis([one]))
    broken = row("a", 1.0, runs=[run("a", values=[float("nan"), float("inf")])])
    assert charts.cost_curves(results(broken), board(broken)) is None
    # Files that other tests left to the garbage collector are not this one's.
    assert not [one.message for one in recwarn if not issubclass(one.category, ResourceWarning)]


def test_a_name_is_text_wherever_it_stands():
    bad = "<script>alert(1)</script>"
    rows = [row(bad, 1.0, runs=[run(bad, values=[2.0, 1.0])]), row("b", 9.0), row("c", 9.1), row(f"{bad}2", 900.0)]
    for chart in (charts.cost_curves(results(*rows[:1]), board(*rows)), charts.front(board(*rows))):
        assert "<script" not in chart and words(chart)


def test_shipped_methods_share_the_colours_evenly_and_others_never_take_them():
    shipped = [offer.origin.split(" ")[0] for offer in registry().named("methods").values()]
    assert set(shipped) == {"distillkit"}
    numbers = {name: colour(run(name)) for name in registry().named("methods")}
    assert sorted(set(numbers.values())) == list(range(len(SHIPPED))), numbers
    assert max(Counter(numbers.values()).values()) <= 3, numbers
    for name in shipped_suites():
        suite = load_suite(name)
        lines = {entry: run(entry, method=suite.method_of(entry)) for entry in suite.methods}
        pairs = [(colour(lines[entry]), dash) for entry, dash in dashes(lines.items()).items()]
        assert len(set(pairs)) == len(pairs), "no two lines of a chart look alike"
    mine = [colour(run("e", method=name, package="mine 1")) for name in ("x", "y", "./mine.py", "dmd")]
    assert all(len(SHIPPED) <= number < len(PALETTE) for number in mine)
    assert colour(run("e", method="a/mine.py", package="p")) == colour(run("f", method="mine", package="q"))


def test_entries_of_one_method_share_its_colour_and_differ_by_their_dashes():
    entries = [(name, run(name, method="dmd")) for name in ("dmd", "without-x", "without-y")] + [("kd", run("kd"))]
    found = dashes(entries)
    assert found["dmd"] == found["kd"] == "" and len({found["dmd"], found["without-x"], found["without-y"]}) == 3


@pytest.mark.parametrize("colour", [*SHIPPED, *OTHERS])
def test_colours_are_seen_on_white(colour):
    parts = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    assert 1.05 / (luminance + 0.05) >= 3, "WCAG 1.4.11"


def test_labels_do_not_overlap():
    wanted = [100.0, 101.0, 99.0, 300.0, -50.0, 102.0]
    placed = spread(wanted, LINE, 0.0, 330.0)
    assert min(b - a for a, b in zip(sorted(placed), sorted(placed)[1:], strict=False)) >= LINE - 1e-9
    assert sorted(range(6), key=lambda n: wanted[n]) == sorted(range(6), key=lambda n: placed[n])
    assert min(placed) >= 0 and max(placed) <= 330
    assert spread([], LINE, 0, 1) == []


def test_values_and_errors_of_a_column_have_the_same_digits():
    values, errors = [0.30267, 2.20808, 44.13511], [0.0029, 0.23, 20.0]
    places = decimals(values, errors)
    shown = [with_error(value, error, places) for value, error in zip(values, errors, strict=True)]
    assert shown == ["0.3027 ± 0.0029", "2.2081 ± 0.2300", "44.1351 ± 20.0000"]
    assert with_error(0.00106, 9e-5) == "0.001060 ± 0.000090" and with_error(0.00106, 0.0003) == "0.00106 ± 0.00030"
    assert with_error(0.0, None) == "0.000" and with_error(1.0, 1e-12) == "1.0000 ± 0.0000"
    assert all(len(set(map(len, re.findall(r"\.(\d+)", text)))) == 1 for text in shown)


def test_an_axis_of_no_length_is_no_axis():
    assert Axis(0.0, 2.0, log=False).share(1.0) == 0.5 and Axis(1.0, 4.0, log=True).share(2.0) == pytest.approx(0.5)
    assert Axis(1.0, 4.0, log=True).share(0.0) < 0
