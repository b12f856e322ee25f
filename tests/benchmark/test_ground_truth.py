"""The mixture, where the truth is known: the methods do what their papers say."""

import pytest

import distillkit
from distillkit.benchmark.suite import Suite

SETTINGS = {
    "dmd": {"settings": {"fake_updates": 1}},
    "alone": {"method": "dmd", "ablation_of": "dmd", "settings": {"kl_weight": 0}},
}


def test_the_kl_covers_what_few_pairs_do_not_show(tmp_path):
    """With 32 pairs, regression alone fills the gaps between them with a blur; the KL finds the modes."""
    suite = Suite(name="blur", teacher="mixture", budget=400_000, curve_points=1, teacher_steps=(5,), methods=SETTINGS)
    result = distillkit.bench(suite, output_dir=tmp_path / "blur", quiet=True)
    board = result.leaderboard
    [(alone, whole, apart)] = board.ablations(result.results)
    between = {
        name: next(
            v.value for k, v in board.records[f"records/{name}-seed0-nfe1.json"].figures.items() if "between" in k
        )
        for name in ("dmd", "alone")
    }
    assert whole.mean < 0.7 * alone.mean and apart.value > 0.5, (whole.mean, alone.mean)
    assert between["dmd"] < between["alone"], between
    assert sum(whole.runs[0].cost.values()) == pytest.approx(sum(alone.runs[0].cost.values()), rel=0.01)
