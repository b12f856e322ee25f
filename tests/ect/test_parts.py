"""ECT and iCT: which neighbours are drawn, how often, and with which weight, on any schedule."""

import math
from itertools import pairwise

import pytest
import torch

from distillkit import Images, Pairs
from distillkit.diffusion import ConsistencySampler, EDMSchedule, FlowSchedule, VPSchedule, euler_step, pseudo_huber
from distillkit.parts import LOWEST, ShrinkingStep, lognormal_between, ratio_range, start_time, step_weight
from distillkit_ect.curricula import Continuous, Doubling
from distillkit_ect.method import ECT, ECTConfig
from tests.parts.toys import SCHEDULES, step_of, toy_teacher

UNIFORM = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def made(teacher, **settings):
    return ECT().recipe(teacher, ECTConfig(**settings))


def test_levels_are_lognormal_between_the_ends():
    s = lognormal_between(UNIFORM, 0.002, 80.0, mean=-1.1, std=2.0)
    z = (s.log() + 1.1) / 2
    assert s.min() >= 0.002 and s.max() <= 80
    assert z.mean().abs() < 0.03 and z.std().item() == pytest.approx(0.97, abs=0.02), "no tails"
    narrow = lognormal_between(UNIFORM, 1.0, 2.0, mean=-1.1, std=2.0)
    assert narrow.min() >= 1 and narrow.max() <= 2 and narrow.log().mean().item() == pytest.approx(0.32, abs=0.02)
    far = lognormal_between(torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), 0.002, 1e8, mean=-1.1, std=2.0)
    assert far.isfinite().all() and far[0] == pytest.approx(0.002)


@pytest.mark.parametrize(("progress", "a"), [(0.0, 1), (0.24, 1), (0.25, 2), (0.99, 4), (1.0, 4)])
def test_the_step_shrinks_from_stage_to_stage(progress, a):
    s = torch.tensor([0.01, 1.0, 50.0], dtype=torch.float64)
    n = torch.tensor([1 + 8 / (1 + math.exp(v)) for v in s.tolist()], dtype=torch.float64)
    torch.testing.assert_close(ShrinkingStep(4)(s, progress, 1e-9), (s * (1 - n / 2**a)).clamp(min=1e-9))


@pytest.mark.parametrize(
    ("progress", "steps"), [(0.0, 10), (0.124, 10), (0.125, 20), (0.5, 160), (0.99, 1280), (1, 1280)]
)
def test_the_grid_doubles(progress, steps):
    """K' = K / (log2(1280 / 10) + 1) = K / 8."""
    assert Doubling(10, 1280, -1.1, 2.0).steps(progress) == steps


def test_pairs_of_the_grid_are_drawn_by_the_error_function():
    """p ~ erf((ln s_{i+1} - mean) / (sqrt 2 std)) - erf((ln s_i - mean) / (sqrt 2 std)), of iCT's Table 1."""
    s, s_next = Doubling(8, 8, -1.1, 2.0)(UNIFORM, 0.0, EDMSchedule(), 80.0)
    grid = [(0.002 ** (1 / 7) + i / 8 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7 for i in range(9)]
    weights = [
        math.erf((math.log(b) + 1.1) / (math.sqrt(2) * 2)) - math.erf((math.log(a) + 1.1) / (math.sqrt(2) * 2))
        for a, b in pairwise(grid)
    ]
    for (a, b), weight in zip(pairwise(grid), weights, strict=True):
        here = ((s - b).abs() < 1e-6 * b) & ((s_next - a).abs() < 1e-6 * a)
        assert here.double().mean().item() == pytest.approx(weight / sum(weights), abs=0.01)


@pytest.mark.parametrize("schedule", [EDMSchedule(), VPSchedule(), VPSchedule(zero_terminal_snr=True), FlowSchedule()])
@pytest.mark.parametrize(
    "curriculum", [Continuous(ShrinkingStep(8), -1.1, 2.0), Doubling(10, 1280, -1.1, 2.0)], ids=["ect", "ict"]
)
@pytest.mark.parametrize("progress", [0.0, 0.99])
def test_neighbours_are_within_the_schedule_and_apart(schedule, curriculum, progress):
    first = start_time(schedule)
    s, s_next = curriculum(UNIFORM, progress, schedule, first)
    low, high = ratio_range(schedule, first)
    assert high <= 80.001 and (s <= high * (1 + 1e-9)).all() and (s_next >= low / LOWEST * (1 - 1e-9)).all()
    assert (s > s_next).all() and step_weight("inverse-step", s, s_next, 0.5).isfinite().all()
    t, r = schedule.at(s).float(), schedule.at(s_next).float()
    assert (t > r).double().mean() > 0.99, "also in float32, but for the very smallest steps"


def test_the_weight_is_one_over_the_step_or_of_the_level():
    s, s_next = torch.tensor([2.0]), torch.tensor([1.5])
    assert step_weight("inverse-step", s, s_next, 0.5).item() == 2
    assert step_weight("karras", s, s_next, 0.5).item() == 4.25


def test_the_distance_is_the_norm_where_c_is_zero():
    a = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    found = pseudo_huber(a, torch.zeros(2, 2), 0.0)
    torch.testing.assert_close(found, torch.tensor([5.0, 0.0]))
    found.sum().backward()
    torch.testing.assert_close(a.grad, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    torch.testing.assert_close(pseudo_huber(a, torch.zeros(2, 2), 12.0)[0].item(), 1.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_neighbours_of_the_teachers_ode(schedule):
    teacher = toy_teacher(schedule)
    recipe = made(teacher, teacher_free=False, guidance=3.0)
    [objective], seen = recipe.objectives, []
    step, ends = step_of(recipe, teacher), objective.neighbours.ends
    objective.neighbours.ends = lambda *a: seen.append(a) or ends(*a)
    assert objective(step).isfinite()
    _, x0, noise, t, r, condition = seen[0]
    x = teacher.schedule.add_noise(x0, noise, t)
    expected = euler_step(teacher.schedule, x, teacher(x, t, condition, 3.0), t, r)
    assert torch.equal(objective.neighbours.step(x, x0, noise, t, r, condition), expected)
    assert recipe.guidance == 3 and made(teacher).guidance is None


def test_settings_reach_the_recipe():
    teacher = toy_teacher("flow")
    recipe = made(teacher, source="pairs", target_decay=0.9)
    assert recipe.needs == {Pairs} and made(teacher).needs == {Images}
    assert recipe.objectives[0].modules().keys() == {"target"} and not made(teacher).objectives[0].modules()
    boundary = recipe.objectives[0].neighbours.boundary
    assert recipe.student.sampler == ConsistencySampler(levels=(start_time(teacher.schedule),), boundary=boundary)
    assert teacher.schedule.ratio(torch.tensor(recipe.student.sampler.levels)).item() == pytest.approx(80)
    assert start_time(EDMSchedule()) == 80 and start_time(VPSchedule(betas="scaled_linear")) == 999


def test_the_last_grid_is_no_coarser_than_the_first():
    with pytest.raises(ValueError, match="first_levels 100 must be at most last_levels 10"):
        ECTConfig(curriculum="ict", first_levels=100, last_levels=10)
    assert ECTConfig(curriculum="ict", first_levels=10, last_levels=10)
