"""Schedules of every family, and solvers against the reference and closed forms."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillkit import Condition
from distillkit.diffusion import (
    EDMSchedule,
    FlowSchedule,
    PredictionDenoiser,
    VPSchedule,
    denoised_from,
    euler,
    euler_step,
    heun,
    karras_sigmas,
    l2,
    per_sample,
    pseudo_huber,
    schedule_of,
)
from distillkit.models.counting import count_evaluations
from tests.conftest import denoiser_of

EDM = EDMSchedule()
SCHEDULES = [
    EDM, VPSchedule(), VPSchedule(betas="scaled_linear", zero_terminal_snr=True, spacing="trailing"),
    VPSchedule(betas="squaredcos_cap_v2", spacing="linspace"), FlowSchedule(), FlowSchedule(shift=3),
]  # fmt: skip


def test_karras_grid(golden):
    sigmas = golden("edm_heun").tensors["sigmas_18"]
    torch.testing.assert_close(karras_sigmas(18), sigmas[:-1], rtol=1e-12, atol=0)
    assert karras_sigmas(1).tolist() == [80.0]
    torch.testing.assert_close(
        karras_sigmas(1000).flip(0).float(), golden("dmd_kl").tensors["karras_sigmas_ascending"], rtol=1e-5, atol=0
    )


def test_heun_matches_reference_and_counts_its_evaluations(golden):
    reference, network = golden("edm_heun"), golden("edm_adm_small")
    denoiser = denoiser_of(network.description["constructor"])
    denoiser.load_state_dict(network.part("net."))
    condition = Condition(labels=reference.tensors["class_labels"].argmax(1))
    for steps in (5, 18):
        with torch.no_grad(), count_evaluations(denoiser) as evaluations:
            sample = heun(
                lambda x, s: denoiser(x, s, condition), reference.tensors["latents"], karras_sigmas(steps), EDM
            )
        assert (sample - reference.tensors[f"sample_{steps}"]).abs().max() <= 1e-3
        assert evaluations() / len(sample) == reference.description["nfe"][f"sample_{steps}"] == 2 * steps - 1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("shape", [(2,), (1, 4, 4), (1, 2, 2, 2)], ids=str)
def test_solvers_solve_a_gaussian_on_every_schedule_and_rank(schedule, shape):
    """For data N(0, s^2) the denoiser is linear, and the ODE's end is noise * s, up to how much noise it starts at."""
    s, noise = 0.5, torch.randn(64, *shape)

    def denoise(x, t):
        alpha, sigma = per_sample(schedule.alpha(t), x), per_sample(schedule.sigma(t), x)
        return alpha * s**2 * x / (alpha**2 * s**2 + sigma**2)

    for solve, steps in ((heun, 60), (euler, 400)):
        out = solve(denoise, noise, schedule.grid(steps), schedule)
        torch.testing.assert_close(out, noise * s, rtol=5e-2, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@given(place=st.floats(0, 1))
def test_times_and_ratios_are_inverse_and_finite(schedule, place):
    t = torch.tensor([schedule.t_min + place * (schedule.t_max - schedule.t_min)], dtype=torch.float64)
    ratio = schedule.ratio(t)
    assert ratio.isfinite().all() and schedule.alpha(t) > 0
    again = schedule.ratio(schedule.at(ratio))
    torch.testing.assert_close(again, ratio, rtol=1e-6, atol=1e-9)
    x0, noise = torch.randn(1, 3), torch.randn(1, 3)
    mixed = schedule.add_noise(x0.double(), noise.double(), t)
    torch.testing.assert_close(mixed, schedule.alpha(t) * x0 + schedule.sigma(t) * noise)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_grids_and_levels_descend(schedule):
    for steps in (1, 2, 7, 50):
        grid = schedule.grid(steps)
        assert len(grid) == steps and (grid.diff() < 0).all() and grid[0] <= schedule.t_max
        levels = schedule.levels(steps)
        assert len(levels) == steps and levels[0] == schedule.t_max and all(a > b for a, b in pairwise(levels))
    assert schedule.levels(3, schedule.at(torch.tensor([2.0])).item())[0] == schedule.at(torch.tensor([2.0])).item()
    assert schedule_of(schedule.model_dump()) == schedule


def test_levels_of_training_steps_are_whole_and_evenly_spaced():
    schedule = VPSchedule()
    assert schedule.levels(4) == (999, 749, 499, 249) and schedule.levels(1) == (999,)
    assert schedule.levels(2, 399) == (399, 199) and schedule.levels(50)[:2] == (999, 979)
    assert schedule.path(50)[-3:].tolist() == [39, 19, 0] and schedule.path(999).tolist() == [*range(999, -1, -1)]
    for count in (3, 7, 499, 500, 501, 512, 998, 1000, 4000):
        levels = schedule.levels(count)
        assert len(levels) == count and all(a > b for a, b in pairwise((*levels, 0.0)))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_an_euler_step_is_undone_by_the_denoised_it_was_made_with(schedule):
    x, denoised = torch.randn(5, 2), torch.randn(5, 2)
    times = schedule.grid(8).float()
    t, t_next = times[1].expand(5), times[4].expand(5)
    moved = euler_step(schedule, x, denoised, t, t_next)
    torch.testing.assert_close(denoised_from(schedule, x, moved, t, t_next), denoised, rtol=1e-3, atol=1e-3)


def test_zero_terminal_snr_is_finite_for_v_and_refused_for_epsilon():
    schedule = VPSchedule(zero_terminal_snr=True)
    network = PredictionDenoiser(_Zero(), schedule, "v_prediction")
    x, t = torch.randn(2, 3), torch.full((2,), schedule.t_max)
    assert network(x, t, Condition()).isfinite().all() and network.loss_weight(t).isfinite().all()
    with pytest.raises(ValueError, match="zero terminal SNR"):
        PredictionDenoiser(_Zero(), schedule, "epsilon")


class _Zero(torch.nn.Module):
    def forward(self, x, t, condition):
        return torch.zeros_like(x)


def test_distances():
    a, b = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 2.0)
    assert l2(a, b).tolist() == [4.0, 4.0]
    c = 0.00054 * 48**0.5
    torch.testing.assert_close(pseudo_huber(a, b), torch.full((2,), (4 * 48 + c * c) ** 0.5 - c))
    assert pseudo_huber(a, a).abs().max() < 1e-7
