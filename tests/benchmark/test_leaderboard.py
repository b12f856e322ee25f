"""Means, standard errors and paired differences, against hand calculation and simulation."""

import dataclasses
import math
import statistics

import pytest
import torch

from distillkit.benchmark.leaderboard import Difference, Leaderboard, Standing, difference
from distillkit.benchmark.report import OtherFigures
from distillkit.benchmark.results import Results, Run
from distillkit.benchmark.suite import Suite
from distillkit.benchmark.verdicts import findings, how_sure
from distillkit.evaluation.frechet import jackknife_error
from distillkit.evaluation.record import Figure


def standing(name, values, left_out=None, seeds=None):
    figures = tuple(
        Figure(value=value, estimator="x@1", leave_one_out=tuple(left_out[k]) if left_out else ())
        for k, value in enumerate(values)
    )
    runs = tuple(
        Run(entry=name, method=name, package="p 1", seed=seed, state="done") for seed in (seeds or range(len(values)))
    )
    return Standing(name, 1, figures, 100.0, runs)


def test_one_seed_has_the_error_of_its_samples_and_none_without_them():
    left = [1.0, 1.2, 0.9, 1.1]
    assert standing("a", [1.0], [left]).error == pytest.approx(jackknife_error(left))
    assert standing("a", [1.0]).error is None
    assert difference(standing("a", [1.0]), standing("b", [2.0])) == Difference(-1.0, None)


def test_seeds_and_samples_are_independent_sources_of_error():
    values, left = [1.0, 2.0, 4.0], [[1.0, 1.1], [2.0, 2.2], [4.0, 4.4]]
    expected = math.hypot(statistics.stdev(values) / math.sqrt(3), jackknife_error([7 / 3, 7.7 / 3]))
    assert standing("a", values, left).error == pytest.approx(expected)


def test_what_both_share_is_no_uncertainty_of_their_difference():
    left = [1.0, 1.5, 0.7, 1.2]
    a, b = standing("a", [1.0], [left]), standing("b", [1.3], [[x + 0.3 for x in left]])
    apart = difference(a, b)
    assert apart.value == pytest.approx(-0.3) and apart.error == pytest.approx(0, abs=1e-12)
    assert a.error > 0.1
    paired = difference(standing("a", [1.0, 2.0, 3.0]), standing("b", [1.5, 2.5, 3.5]))
    assert paired.error == pytest.approx(0, abs=1e-12)


def test_unequal_seeds_are_not_paired():
    a, b = standing("a", [1.0, 2.0, 3.0]), standing("b", [1.5, 2.5], seeds=[0, 1])
    expected = math.hypot(1 / math.sqrt(3), statistics.stdev([1.5, 2.5]) / math.sqrt(2))
    assert difference(a, b).error == pytest.approx(expected)


def test_two_standard_errors_hold_the_truth_most_of_the_time():
    """Simulated trainings of two methods whose true difference is known."""
    generator, held, trials = torch.Generator().manual_seed(0), 0, 400
    for _ in range(trials):
        shared = torch.randn(5, generator=generator)
        a = (1.0 + shared + 0.3 * torch.randn(5, generator=generator)).tolist()
        b = (1.5 + shared + 0.3 * torch.randn(5, generator=generator)).tolist()
        apart = difference(standing("a", a), standing("b", b))
        held += abs(apart.value + 0.5) <= 2.776 * apart.error  # Student's t, four degrees of freedom
    assert 0.92 <= held / trials <= 0.98


def test_figures_beside_the_own_one_have_means_and_errors_over_seeds():
    def of(values):
        return tuple(Figure(value=value, estimator="x@1") for value in values)

    a = dataclasses.replace(standing("a", [1.0, 2.0]), others={"alignment[x]-9": of([0.5, 0.7])})
    both = {"alignment[x]-9": of([0.4, 0.4]), "alignment/colour[x]-9": of([0.1, 0.3])}
    b = dataclasses.replace(standing("b", [3.0, 4.0]), others=both)
    assert a.other("alignment[x]-9") == (pytest.approx(0.6), pytest.approx(0.1))
    assert a.other("alignment/colour[x]-9") is None
    table = OtherFigures.of(1, [a, b])
    assert table.names == ["alignment", "colour"] and [name for name, _ in table.lines] == ["a", "b"]
    (_, first), (_, second) = table.lines
    assert first[0].startswith("0.6") and "±" in first[0] and first[1] == ""
    assert second[0].startswith("0.4") and second[1].startswith("0.2")


def test_significant_means_more_than_two_standard_errors():
    assert Difference(0.5, 0.2).is_significant and not Difference(0.3, 0.2).is_significant
    assert not Difference(0.5, None).is_significant


def test_few_seeds_need_more_standard_errors():
    """Student's t: what three trainings differ by 3 SE may be chance, what ten do is not."""
    assert Difference(0.5, 0.2, seeds=3).is_significant and not Difference(0.5, 0.2, seeds=3).is_settled
    assert Difference(1.0, 0.2, seeds=3).is_settled and Difference(0.5, 0.2, seeds=10).is_settled
    assert Difference(0.5, 0.2).is_settled, "of the evaluation's samples alone"
    rows = standing("a", [1.0, 2.0, 3.0]), standing("b", [1.5, 2.4, 3.9])
    assert difference(*rows).seeds == 3 and difference(standing("a", [1.0]), standing("b", [2.0])).seeds == 0


def test_findings_say_how_sure_a_difference_is():
    left = [1.0, 1.1, 0.9, 1.0]
    best, level = standing("best", [1.0], [left]), standing("level", [1.02], [[1.1, 0.9, 1.2, 1.0]])
    worse, unsure = standing("worse", [2.0], [[x + 1 for x in left]]), standing("unsure", [3.0])
    rows = [best, *(dataclasses.replace(row, to_best=difference(row, best)) for row in (level, worse, unsure))]
    worse_by = dataclasses.replace(rows[2], to_best=Difference(1.0, 0.1))
    board = Leaderboard("FD", "p1-0", {1: [best, rows[1], worse_by, rows[3]]}, [], [], {})
    results = Results(suite=Suite(name="s", teacher="t", budget=10, methods={"best": {}}))
    [text] = findings(results, board)
    assert "level is not significantly different (< 2 SE)" in text and "worse is significantly worse" in text
    assert "unsure is worse" in text


@pytest.mark.parametrize(
    ("seeds", "sampled", "words"),
    [
        (1, True, ["samples alone", "one training seed"]), (1, False, ["without sampling error"]),
        (3, True, ["samples and the 3 training seeds", "4.3 SE"]), (3, False, ["without sampling error", "4.3 SE"]),
    ],
)  # fmt: skip
def test_it_is_said_what_the_standard_errors_hold(seeds, sampled, words):
    left = [[1.0, 1.1, 0.9]] * seeds if sampled else None
    best, worse = standing("best", [1.0] * seeds, left), standing("worse", [2.0 + k for k in range(seeds)], left)
    rows = [best, dataclasses.replace(worse, to_best=difference(worse, best))]
    board = Leaderboard("FD", "p1-0", {1: rows}, [], [], {})
    assert all(word in how_sure(board) for word in words)
