"""sCM's levels, warm-up, weight and cost."""

import math

import pytest
import torch

from distillkit import Images, Pairs
from distillkit.data.images import ImageSource
from distillkit.diffusion import ConsistencySampler, DenoiserBoundary
from distillkit.parts import STD_TO_DATA, log_spread
from distillkit_scm.method import SCM, SCMConfig
from distillkit_scm.trigflow import TrigFlow
from tests.engine.conftest import Bench
from tests.parts.toys import SCHEDULES, step_of, toy_teacher


def made(teacher, **settings):
    return SCM().recipe(teacher, SCMConfig(**settings))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_trigflow_is_the_teachers_ode_in_every_schedule(schedule):
    """dx_t/dt of (cos, sin) coordinates is the schedule's own trajectory: y = x_t / cos(t) has dy/ds = (y - D) / s."""
    teacher = toy_teacher(schedule)
    step = step_of(made(teacher), teacher)
    flow, level = TrigFlow(teacher.schedule, 0.5), torch.tensor([-1.0, -0.7, -0.4, 0.1])
    x0, z = step.images.sample, 0.5 * step.normal("z")
    cos, sin = flow.angles(level, x0)
    x = cos * x0 + sin * z
    torch.testing.assert_close((cos.square() + sin.square()).flatten(), torch.ones(4))
    s = level.exp().reshape(-1, 1, 1, 1)
    t = teacher.schedule.at(level.exp())
    own = teacher.schedule.add_noise(x0, z / 0.5, t)
    denoised = teacher(own, t, step.images.condition)
    torch.testing.assert_close(flow.denoised(teacher, x, level, step.images.condition), denoised, rtol=1e-4, atol=1e-4)
    # d(x / cos)/ds with d/ds = cos^2 / sigma_d d/dt and d(1 / cos)/dt = sin / cos^2.
    velocity = flow.output(teacher, x, level, step.images.condition)
    moved = cos.square() / 0.5 * (velocity / cos + x * sin / cos.square())
    torch.testing.assert_close(moved, (x / cos - denoised) / s, rtol=1e-3, atol=1e-3)


def test_levels_are_drawn_within_the_schedule_and_below_the_start():
    teacher = toy_teacher()
    recipe = made(teacher, level_mean=1.0, level_std=3.0)
    assert recipe.student.sampler == ConsistencySampler(levels=(80.0,), boundary=DenoiserBoundary())
    for first in (80.0, 2.0):
        recipe.student.sampler = recipe.student.sampler.with_levels([first])
        level, _, _ = recipe.objectives[0].tangents(step_of(recipe, teacher, size=200))
        assert 0.002 < level.exp().min() < 0.01 and 0.8 * first < level.exp().max() < first


@pytest.mark.parametrize(("progress", "r"), [(0.0, 0.0), (0.1, 0.25), (0.4, 1.0), (0.9, 1.0)])
def test_the_unstable_term_comes_in_with_the_warm_up(progress, r, monkeypatch):
    teacher = toy_teacher()
    recipe, seen = made(teacher, tangent_warmup=0.4), []
    tangents = recipe.objectives[0].tangents
    at = tangents.at
    monkeypatch.setattr(tangents, "at", lambda *given: seen.append(given[-1]) or at(*given))
    step = step_of(recipe, teacher)
    step.progress = progress
    tangents(step)
    assert seen == [pytest.approx(r)]


@pytest.mark.parametrize("schedule", ["edm", "vp"])
def test_health_sees_where_all_trajectories_of_the_noisiest_end_alike(schedule):
    """The ends are what the consistency function gives, which is the denoiser; their spread is over the data's."""
    teacher = toy_teacher(schedule)
    recipe = made(teacher, level_mean=0.0)
    [objective] = recipe.objectives
    assert objective.diagnostics[0] is STD_TO_DATA
    step, tangents = step_of(recipe, teacher, size=32), objective.tangents
    x0, noise, level = step.images.sample, step.normal("noise"), torch.linspace(-2, 2, 32)
    cos, sin = tangents.flow.angles(level, x0)
    out, _ = tangents.at(recipe.student.denoiser, x0, noise, level, step.images.condition, 1.0)
    denoised = tangents.flow.denoised(
        recipe.student.denoiser, cos * x0 + sin * tangents.flow.sigma_data * noise, level, step.images.condition
    )
    torch.testing.assert_close(tangents.ends(x0, noise, level, out), denoised, rtol=1e-4, atol=1e-4)

    def spread(factor):
        step = step_of(recipe, teacher, size=32)
        log_spread(step, torch.cat([x0[:24], factor * x0[24:]]), x0, level)
        return float(step.logged["std_to_data"])

    assert spread(1.0) == pytest.approx(1) and spread(0.1) == pytest.approx(0.1)
    objective(step := step_of(recipe, teacher))
    assert step.logged["std_to_data"] > 0


def test_the_weight_learns_the_inverse_error_of_every_level():
    teacher = toy_teacher()
    [weight], level = made(teacher).learners, torch.linspace(-5, 4, 400)
    error = torch.exp(0.5 * level)
    optimizer = torch.optim.Adam(weight.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        w = weight(level)
        (w.exp() * error - w).mean().backward()
        optimizer.step()
    assert (weight(level) + 0.5 * level).abs().mean() < 0.2


def test_the_weights_loss_evaluates_nothing_anew(monkeypatch):
    teacher = toy_teacher()
    recipe = made(teacher, tangent_warmup=0)
    [objective], [weight] = recipe.objectives, recipe.learners
    step, asked = step_of(recipe, teacher), []
    value = objective(step).item()
    handle = recipe.student.denoiser.register_forward_hook(lambda *given: asked.append(given))
    assert weight.loss(step).item() == pytest.approx(value, rel=1e-5) and not asked
    weight.loss(step_of(recipe, teacher, index=1))
    assert asked
    handle.remove()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"student": 5, "teacher": 1}),
        ({"tangent": "jvp"}, {"student": 5, "teacher": 1}),
        ({"teacher_free": True}, {"student": 5}),
        ({"source": "pairs", "adaptive": False}, {"student": 5, "teacher": 1}),
    ],
)
def test_cost_of_a_tangent_is_two_passes_by_either_way(tiny_teacher, tmp_path, settings, expected):
    bench = Bench(tiny_teacher, tmp_path)
    bench.sources[Images] = ImageSource.synthetic(tiny_teacher, torch.device("cpu"))
    assert bench.counted(made(tiny_teacher, **settings)) == {role: 16 * n for role, n in expected.items()}


def test_settings_reach_the_recipe():
    teacher = toy_teacher("vp")
    recipe = made(teacher, source="pairs", weight_lr=1e-2, guidance=3.0)
    assert recipe.needs == {Pairs} and recipe.guidance == 3.0
    assert recipe.learners[0].optimizer.lr == 1e-2 and made(teacher).learners[0].optimizer is None
    assert made(teacher, adaptive=False).learners == [] and made(teacher, teacher_free=True).guidance is None
    [level, _, _] = recipe.objectives[0].tangents(step_of(recipe, teacher))
    assert math.isfinite(level.sum())
