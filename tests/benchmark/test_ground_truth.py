"""The mixture, where the truth is known: the methods do what their papers say."""

import pytest

import distillkit
from distillkit.benchmark.suite import Suite

COMMON = {
    "training": {"lr": 1e-3, "ema_halflife": "10k"},
    "student": {"start_ratio": None},
    "sources": {"pairs": {"count": 32}},
}
SCORES = {"fake_updates": 1, "fake_lr": None, "level_min": 0.02, "level_max": 0.98}
SETTINGS = {
    "dmd": {**COMMON, "settings": {**SCORES, "kl_weight": 1.0}},
    "alone": {**COMMON, "method": "dmd", "ablation_of": "dmd", "settings": {**SCORES, "kl_weight": 0}},
}
"""Few pairs and one rate for both networks, where the preset has as many pairs as pay."""


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
