"""Consistency distillation: its levels, target and settings, on any schedule."""

import pytest
import torch

from distillkit import Images, Pairs
from distillkit.diffusion import ConsistencySampler, heun_step
from distillkit_consistency.method import Consistency, ConsistencyConfig
from tests.parts.toys import SCHEDULES, step_of, toy_teacher


def made(teacher, **settings):
    return Consistency().recipe(teacher, ConsistencyConfig(levels=8, **settings))


def test_target_follows_the_student_slowly_and_gets_no_gradient():
    teacher = toy_teacher()
    recipe = made(teacher, target_decay=0.75)
    [objective] = recipe.objectives
    target, step = objective.modules()["target"], step_of(recipe, teacher)
    before = [p.clone() for p in target.parameters()]
    objective(step).backward()
    with torch.no_grad():
        for parameter in recipe.student.parameters():
            parameter.add_(1)
    objective.after_step(step)
    for old, new, student in zip(before, target.parameters(), recipe.student.denoiser.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * student, rtol=1e-5, atol=1e-7)
        assert new.grad is None
    objective.begin_stage(recipe.stages[0], recipe.student)
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), recipe.student.parameters(), strict=True))
    assert made(teacher, target_decay=0).objectives[0].modules() == {}, "0: the student itself"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_levels_lead_from_where_the_student_starts_to_the_least_noise(schedule, monkeypatch):
    teacher = toy_teacher(schedule)
    recipe = made(teacher)
    [objective], seen = recipe.objectives, []
    monkeypatch.setattr(
        objective, "losses", lambda student, x0, noise, t, t_next, c: seen.append((t, t_next)) or torch.zeros(len(t))
    )
    for first in (None, teacher.schedule.path(4)[1].item()):
        if first:
            recipe.student.sampler = recipe.student.sampler.with_levels([first])
        objective(step_of(recipe, teacher, size=200))
        t, t_next = (level.double() for level in seen[-1])
        path = teacher.schedule.path(7, first).float().double()
        assert torch.equal(t.unique(), path[:-1].sort().values) and torch.equal(t_next.unique(), path[1:].sort().values)
        assert (t_next < t).all() and t.max() == torch.tensor(first or teacher.schedule.t_max).double()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_neighbours_with_and_without_the_teacher(schedule):
    teacher = toy_teacher(schedule)
    recipe = made(teacher, guidance=3.0)
    step = step_of(recipe, teacher)
    data, noise = step.images, step.normal("noise")
    t, t_next = (level.float().expand(4) for level in teacher.schedule.path(4)[1:3])
    x = teacher.schedule.add_noise(data.sample, noise, t)
    found = recipe.objectives[0].neighbour(x, data.sample, noise, t, t_next, data.condition)
    expected = heun_step(lambda x, t: teacher(x, t, data.condition, 3.0), teacher.schedule, x, t, t_next)
    assert torch.equal(found, expected)
    free = made(teacher, teacher_free=True)
    found = free.objectives[0].neighbour(x, data.sample, noise, t, t_next, data.condition)
    assert torch.equal(found, teacher.schedule.add_noise(data.sample, noise, t_next))
    assert (recipe.guidance, free.guidance) == (3.0, None)


def test_settings_reach_the_recipe():
    teacher = toy_teacher("vp")
    recipe = made(teacher, source="pairs", distance="l1")
    assert recipe.needs == {Pairs} and made(teacher).needs == {Images}
    assert recipe.objectives[0].distance.name == "l1"
    assert recipe.student.sampler == ConsistencySampler(levels=(teacher.schedule.t_max,))
    assert len(recipe.student.sampler.with_nfe(4, recipe.student.denoiser).levels) == 4
