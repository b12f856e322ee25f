"""Power-function averages and their mixtures: EDM2's own numbers, and averages that were tracked."""

import json
import math
from pathlib import Path

import pytest
import torch

from distillkit.engine.optimization import PowerAverage
from distillkit.power_ema import LARGEST, Profile, gamma_of, mixture, power_decay, sigma_rel_of

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "edm2_phema.json").read_text())


def test_widths_exponents_and_decays_are_edm2s():
    for sigma, gamma in GOLDEN["gamma_of_sigma"]:
        assert gamma_of(sigma) == pytest.approx(gamma, rel=1e-9)
    for gamma, sigma in GOLDEN["sigma_of_gamma"]:
        assert sigma_rel_of(gamma) == pytest.approx(sigma, rel=1e-12)
        assert gamma_of(sigma_rel_of(gamma)) == pytest.approx(gamma, abs=1e-7)
    for case in GOLDEN["betas"]:
        assert power_decay(case["sigma"], case["images"], case["seen"]) == pytest.approx(case["beta"], rel=1e-9)
    assert power_decay(0.1, 64, 64) == 0 and power_decay(0.1, 64, 32) == 0 and power_decay(0.1, 64, 0) == 0
    for sigma in (0.0, -0.1, 0.3, math.nan):
        with pytest.raises(ValueError, match=r"between 0 and 0\.28"):
            gamma_of(sigma)
    assert gamma_of(LARGEST) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("number", range(len(GOLDEN["cases"])))
def test_coefficients_are_edm2s(number):
    case = GOLDEN["cases"][number]
    kept = [Profile(*one) for one in zip(case["times"], case["sigmas"], strict=True)]
    found = mixture(kept, Profile(case["time"], case["sigma"]))
    assert found.coefficients == pytest.approx(case["coefficients"], abs=1e-9)
    assert sum(found.coefficients) == pytest.approx(1, abs=1e-12)
    here = [one == Profile(case["time"], case["sigma"]) for one in kept]
    assert (found.error < 1e-6) == any(here)


def walk(steps, generator):
    """Weights that move as those of a training do."""
    return torch.randn(steps, 50, generator=generator, dtype=torch.float64).cumsum(0) / math.sqrt(steps)


@pytest.mark.parametrize("sigma", [0.06, 0.1, 0.13, 0.2])
def test_a_mixture_is_the_average_that_was_tracked_to_what_it_misses_of_the_profile(sigma):
    """Each as a whole, by the same class as trainings'."""
    steps, batch, every = 1024, 8, 64
    module = torch.nn.Linear(50, 1, bias=False).double()
    copies = {width: torch.nn.Linear(50, 1, bias=False).double() for width in (0.05, 0.1, sigma)}
    averages = {width: PowerAverage(module, copy, sigma_rel=width) for width, copy in copies.items()}
    kept, weights = {}, walk(steps, torch.Generator().manual_seed(0))
    for step, now in enumerate(weights, 1):
        with torch.no_grad():
            module.weight.copy_(now)
        for average in averages.values():
            average.update(batch, step * batch)
        if step % every == 0:
            kept |= {Profile(step * batch, width): copies[width].weight.clone() for width in (0.05, 0.1)}
    wanted = copies[sigma].weight
    found = mixture(list(kept), Profile(steps * batch, sigma))
    made = sum(c * w for c, w in zip(found.coefficients, kept.values(), strict=True))
    spread = weights.std()
    # What is missed of the profile, times how far weights lie apart; and that steps are no instants.
    assert float((made - wanted).square().mean().sqrt()) < (found.error + 2 / steps / sigma) * float(spread)
    # Equal to the profile itself, of weights at the steps' ends.
    gamma, ends = gamma_of(sigma), torch.arange(steps + 1, dtype=torch.float64) / steps
    share = ends[1:] ** (gamma + 1) - ends[:-1] ** (gamma + 1)
    torch.testing.assert_close(wanted[0], (share[:, None] * weights).sum(0), rtol=1e-9, atol=1e-12)


def test_more_snapshots_come_closer():
    errors = []
    for count in (8, 16, 32):
        kept = [Profile((k + 1) / count, width) for k in range(count) for width in (0.05, 0.1)]
        errors.append(mixture(kept, Profile(1.0, 0.13)).error)
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 0.002


@pytest.mark.parametrize(
    ("count", "widths"),
    [(32, (0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.15)), (64, (0.1, 0.1000001)), (4, (0.1, 0.1 + 1e-12))],
)
def test_averages_that_are_almost_alike_add_up_no_rounding_errors(count, widths):
    """They are kept in float32, whose rounding errors grow with the coefficients."""
    kept = [Profile((k + 1) / count, width) for k in range(count) for width in widths]
    found = mixture(kept, Profile(1.0, 0.13))
    assert math.hypot(*found.coefficients) < 2e4 and found.error < 0.2
    if len(widths) > 2:
        assert math.hypot(*found.coefficients) < 1 and found.error < 1e-6
