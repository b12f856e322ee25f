"""The mixture, where the truth is known: the ruler is right, and the methods do what their papers say."""

import pytest
import torch

from distillkit import Condition, load_teacher
from distillkit.benchmark.leaderboard import leaderboard
from distillkit.benchmark.results import read_results
from distillkit.embedded.mixture.protocol import HALF, density_ruler, divergence, push, true_masses
from distillkit.jobs.scores import teacher_pixels
from distillkit.embedded.mixture.teacher import MODES, SPREAD, MixtureDenoiser, means

CPU = torch.device("cpu")


def drawn(count, spread=SPREAD, modes=MODES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mode = torch.randint(modes, (count,), generator=generator)
    return means()[mode] + spread * torch.randn(count, 2, generator=generator, dtype=torch.float64)


def test_the_masses_of_all_cells_are_one_and_none_is_empty():
    masses = true_masses()
    assert masses.sum().item() == pytest.approx(1, abs=1e-12) and (masses > 0).all()
    counted = torch.histogramdd(drawn(400_000), [64, 64], range=[-HALF, HALF, -HALF, HALF]).hist.flatten() / 400_000
    assert (counted - masses[:-1]).abs().max() < 5 * (masses.max() / 400_000).sqrt()


def test_the_divergence_is_zero_for_the_truth_and_known_for_others():
    true = divergence(drawn(400_000))
    assert 0 <= true.kl < 0.003 and true.covered == MODES and true.between < 5e-4
    half = divergence(drawn(400_000, modes=4))
    assert half.kl == pytest.approx(torch.tensor(2.0).log().item(), abs=0.01), "half of the modes: log 2"
    assert half.covered == 4
    # Of a Gaussian of spread a against one of spread b in the plane: a^2 / b^2 - 1 - log(a^2 / b^2). What is smaller
    # than a cell is not seen, so cells can hide a part of it and never add to it.
    exact = 2.25 - 1 - torch.tensor(2.25).log().item()
    assert 0.9 * exact < divergence(drawn(400_000, spread=1.5 * SPREAD)).kl < exact


def test_the_denoiser_is_the_posterior_mean():
    """Against a sum over many samples of the mixture, weighted by Bayes' rule."""
    x0, denoiser = drawn(200_000).float(), MixtureDenoiser()
    for sigma, x in ((0.3, (0.5, 0.2)), (1.0, (-0.4, 0.9)), (0.1, (0.69, 0.05))):
        point = torch.tensor([x])
        weights = torch.softmax(-(point - x0).square().sum(1) / (2 * sigma**2), 0)
        expected = (weights[:, None] * x0).sum(0)
        found = denoiser(point[:, :, None, None], torch.tensor([sigma]), Condition()).flatten()
        torch.testing.assert_close(found, expected, atol=0.01, rtol=0)


def test_more_steps_bring_the_teacher_closer_to_the_truth():
    teacher = load_teacher("mixture")
    values = [
        density_ruler().score(teacher_pixels(teacher, steps), teacher.denoiser, teacher.spec, CPU).value
        for steps in (5, 10, 18, 50)
    ]
    assert values == sorted(values, reverse=True) and values[-1] < 0.02
    made, nfe, _ = push(teacher_pixels(teacher, 5), teacher.denoiser, CPU, 1000)
    assert made.shape == (1000, 2) and nfe == 9


def test_the_kl_covers_what_few_pairs_do_not_show(inside, tmp_path):
    """With 32 pairs, regression alone fills the gaps between them with a blur; the KL finds the modes."""
    (tmp_path / "suite.yaml").write_text(
        "name: blur\nteacher: mixture\nbudget: 400k\ncurve_points: 1\nteacher_steps: [5]\nmethods:\n"
        "  dmd: {settings: {fake_updates: 1}}\n"
        "  alone: {method: dmd, ablation_of: dmd, settings: {kl_weight: 0}}\n"
    )
    assert inside("bench", "--suite", "suite.yaml", "--quiet").returncode == 0
    folder = tmp_path / "bench" / "blur"
    board = leaderboard(folder, read_results(folder))
    [(alone, whole, apart)] = board.ablations(read_results(folder))
    between = {
        name: next(
            v.value for k, v in board.records[f"records/{name}-seed0-nfe1.json"].figures.items() if "between" in k
        )
        for name in ("dmd", "alone")
    }
    assert whole.mean < 0.7 * alone.mean and apart.value > 0.5, (whole.mean, alone.mean)
    assert between["dmd"] < between["alone"], between
    assert sum(whole.runs[0].cost.values()) == pytest.approx(sum(alone.runs[0].cost.values()), rel=0.01)
