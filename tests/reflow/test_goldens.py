"""Reflow against the formulas of Liu et al. (2022, 2023), in the papers' own variables."""

import copy

import pytest
import torch

from distillkit import OneStep, UsageError
from distillkit_reflow.method import Reflow, ReflowConfig
from distillkit_reflow.straight import straight_levels
from tests.parts.toys import step_of, toy_teacher

SCHEDULES = ["edm", "vp", "vp, no signal at the end", "flow"]


def velocity(denoiser, x, s, condition):
    """v(X_s, s) of a denoiser under any schedule, X_s = (1 - s) y + s z: x_t = (alpha + sigma) X_s."""
    ratio = s / (1 - s)
    t = denoiser.schedule.at(ratio)
    alpha, sigma = denoiser.schedule.alpha(t), denoiser.schedule.sigma(t)
    scale = (alpha + sigma).reshape(-1, 1, 1, 1).float()
    return (x - denoiser(scale * x, t.float(), condition)) / s.reshape(-1, 1, 1, 1).float()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_round_regresses_the_velocity_on_the_straight_line(schedule):
    teacher = toy_teacher(schedule)
    recipe = Reflow().recipe(teacher, ReflowConfig(rounds=2))
    [objective], step = recipe.objectives, step_of(recipe, teacher)
    z, y, condition = step.pairs.noise, step.pairs.sample, step.pairs.condition
    ends = torch.tensor([teacher.schedule.t_min, teacher.schedule.t_max], dtype=torch.float64)
    low, high = (r / (1 + r) for r in teacher.schedule.ratio(ends))
    s = low + (high - low) * step.uniform("level")
    line = (1 - s).reshape(-1, 1, 1, 1).float() * y + s.reshape(-1, 1, 1, 1).float() * z
    expected = (velocity(recipe.student.denoiser, line, s, condition) - (z - y)).square().mean()
    torch.testing.assert_close(objective(step), expected, rtol=1e-4, atol=1e-5)


def test_of_a_flow_the_line_is_its_own_and_the_loss_that_of_its_network():
    teacher = toy_teacher("flow")
    recipe = Reflow().recipe(teacher, ReflowConfig())
    step = step_of(recipe, teacher)
    z, y = step.pairs.noise, step.pairs.sample
    t = 0.001 + 0.999 * step.uniform("level").float()
    x = (1 - t).reshape(-1, 1, 1, 1) * y + t.reshape(-1, 1, 1, 1) * z
    network = recipe.student.denoiser.model
    expected = (network(x, t, step.pairs.condition) - (z - y)).square().mean()
    torch.testing.assert_close(recipe.objectives[0](step), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_later_pairs_are_euler_steps_of_the_straight_flow(schedule, guidance):
    teacher, steps = toy_teacher(schedule), 4
    recipe = Reflow().recipe(teacher, ReflowConfig(steps=steps, flow_guidance=guidance))
    [objective], step = recipe.objectives, step_of(recipe, teacher)
    z, condition, start = step.noise, step.condition, teacher.schedule.start(step.noise)
    null, schedule = teacher.conditioner.null(condition), teacher.schedule
    times = straight_levels(schedule, steps)
    ratio = schedule.ratio(times)
    shares = ratio / (1 + ratio)
    torch.testing.assert_close(shares.diff(), shares.diff().mean().expand(steps), rtol=1e-4, atol=1e-6)
    x = start / (schedule.alpha(times[0]) + schedule.sigma(times[0])).float()
    for share, following in zip(shares[:-1], [*shares[1:-1], torch.zeros(())], strict=True):
        at = share.expand(len(x))
        v = velocity(objective.predecessor, x, at, condition)
        if guidance != 1:
            v = guidance * v + (1 - guidance) * velocity(objective.predecessor, x, at, null)
        x = x + (following - share).float() * v
    made = objective.simulated(z, condition)
    assert made.noise is z and not made.sample.requires_grad
    torch.testing.assert_close(made.sample, x.detach(), rtol=2e-3, atol=2e-4)


def test_the_last_stage_lands_in_one_step_where_the_frozen_flow_does():
    teacher = toy_teacher("vp")
    recipe = Reflow().recipe(teacher, ReflowConfig(steps=3, distance="l1"))
    [objective], step = recipe.objectives, step_of(recipe, teacher)
    recipe.student.sampler, step.stage = OneStep(), recipe.stages[1]
    with torch.no_grad():
        recipe.student.denoiser.model.last.bias += 0.3
    frozen = copy.deepcopy(objective.predecessor)
    wanted = objective.simulated(step.noise, step.condition).sample
    loss = objective(step)
    torch.testing.assert_close(loss, (recipe.student(step.noise, step.condition) - wanted).abs().mean())
    loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(frozen.parameters(), objective.predecessor.parameters(), strict=True))
    assert all(p.grad is None for p in objective.predecessor.parameters())


def test_without_a_round_the_teachers_pairs_are_distilled_at_once():
    teacher = toy_teacher("edm")
    recipe = Reflow().recipe(teacher, ReflowConfig(rounds=0))
    [objective], step = recipe.objectives, step_of(recipe, teacher)
    assert [stage.name for stage in recipe.stages] == ["one step"] and objective.modules() == {}
    expected = (recipe.student(step.pairs.noise, step.pairs.condition) - step.pairs.sample).square().mean()
    torch.testing.assert_close(objective(step), expected)


def test_lpips_is_refused_where_there_are_no_images():
    with pytest.raises(UsageError, match="lpips"):
        Reflow().recipe(toy_teacher("edm", "points"), ReflowConfig(distance="lpips"))
