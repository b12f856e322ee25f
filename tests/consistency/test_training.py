"""Consistency distillation: its levels, target and settings, on any schedule."""

import pytest
import torch
from pydantic import ValidationError

from distillkit import Images, Pairs
from distillkit.diffusion import (
    ConsistencySampler,
    DenoiserBoundary,
    KarrasBoundary,
    StepBoundary,
    VPSchedule,
    consistency_function,
    heun_step,
    per_sample,
)
from distillkit_consistency.growth import Growth
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
        objective, "losses", lambda student, x0, noise, t, t_next, *_: seen.append((t, t_next)) or torch.zeros(len(t))
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
    found = recipe.objectives[0].neighbours.step(x, data.sample, noise, t, t_next, data.condition)
    expected = heun_step(lambda x, t: teacher(x, t, data.condition, 3.0), teacher.schedule, x, t, t_next)
    assert torch.equal(found, expected)
    free = made(teacher, teacher_free=True)
    found = free.objectives[0].neighbours.step(x, data.sample, noise, t, t_next, data.condition)
    assert torch.equal(found, teacher.schedule.add_noise(data.sample, noise, t_next))
    assert (recipe.guidance, free.guidance) == (3.0, None)


def test_a_skipping_ddim_step_is_that_of_latent_consistency_models():
    """20 of 1000 training steps, from 999, 979, ..., 19, the last of which ends at step 0."""
    from diffusers import DDIMScheduler

    betas = {"beta_start": 0.00085, "beta_end": 0.012}
    schedule = VPSchedule(betas="scaled_linear", **betas)
    teacher = toy_teacher("vp")
    teacher.denoiser.schedule = schedule
    recipe = Consistency().recipe(teacher, ConsistencyConfig(levels=51, solver="ddim", guidance=3.0))
    [objective], seen = recipe.objectives, []
    losses = objective.losses
    objective.losses = lambda *a: seen.append(a) or losses(*a)
    assert objective(step_of(recipe, teacher, size=200)).isfinite()
    _, x0, noise, t, t_next, condition, *_ = seen[0]
    assert set(t.tolist()) <= set(range(19, 1000, 20)) and (t_next == (t - 20).clamp(min=0)).all()

    scheduler = DDIMScheduler(beta_schedule="scaled_linear", **betas, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(50)
    x = schedule.add_noise(x0, noise, t)
    denoised = teacher(x, t, condition, 3.0)
    alpha, sigma = (per_sample(v, x) for v in (schedule.alpha(t), schedule.sigma(t)))
    predicted = (x - alpha * denoised) / sigma
    expected = torch.cat([
        scheduler.step(predicted[i : i + 1], int(t[i]), x[i : i + 1]).prev_sample for i in range(len(t))
    ])  # fmt: skip
    found = objective.neighbours.step(x, x0, noise, t, t_next, condition)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_neighbour_is_so_many_levels_away_and_never_beyond_the_last(schedule):
    teacher = toy_teacher(schedule)
    recipe = made(teacher, skip=3)
    [objective], seen = recipe.objectives, []
    objective.losses = lambda student, x0, noise, t, t_next, *_: seen.append((t, t_next)) or torch.zeros(len(t))
    objective(step_of(recipe, teacher, size=100))
    path = teacher.schedule.path(7).float()
    places = [(path == t).nonzero().item() for t in seen[0][0]], [(path == t).nonzero().item() for t in seen[0][1]]
    assert {(a, b) for a, b in zip(*places, strict=True)} == {(a, min(a + 3, 7)) for a in range(7)}


def test_the_target_is_not_guided_again():
    """Else every round of the training would guide once more."""
    teacher = toy_teacher("vp")
    recipe = made(teacher, guidance=4.0)
    [objective], asked = recipe.objectives, []
    objective.modules()["target"].register_forward_hook(lambda network, given, out: asked.append(given))
    step = step_of(recipe, teacher)
    objective(step)
    [(x, _, condition)] = asked
    assert len(x) == len(step) and torch.equal(condition["labels"], step.images.condition["labels"])


def test_settings_reach_the_recipe():
    teacher = toy_teacher("vp")
    recipe = made(teacher, source="pairs", distance="l1")
    assert recipe.needs == {Pairs} and made(teacher).needs == {Images}
    assert recipe.objectives[0].distance.name == "l1"
    assert recipe.student.sampler == ConsistencySampler(levels=(teacher.schedule.t_max,), boundary=StepBoundary())
    assert len(recipe.student.sampler.with_nfe(4, recipe.student.denoiser).levels) == 4


BOUNDARIES = {"edm": KarrasBoundary, "vp": StepBoundary, "flow": DenoiserBoundary}


@pytest.mark.parametrize("family", BOUNDARIES)
def test_the_boundary_is_the_familys_and_the_same_in_the_loss_and_in_samples(family):
    teacher = toy_teacher(family)
    recipe = made(teacher, target_decay=0.0)
    student, [objective] = recipe.student, recipe.objectives
    boundary = student.sampler.boundary
    assert type(boundary) is BOUNDARIES[family]
    # f = x / alpha at the smallest time; a flow's and LCM's hold at 0, where x is the sample.
    x, step = torch.randn(4, 3, 4, 4), step_of(recipe, teacher)
    end = torch.full((4,), teacher.schedule.t_min if family == "edm" else 0.0)
    how = {"schedule": teacher.schedule, "boundary": boundary}
    torch.testing.assert_close(consistency_function(teacher.denoiser, x, end, step.condition, **how), x)
    # What the loss compares is what the sampler makes, whatever the boundary is.
    for changed in (boundary, StepBoundary(timestep_scaling=1e-3), KarrasBoundary(sigma_data=2.0)):
        student.sampler = student.sampler.model_copy(update={"boundary": changed})
        asked, compared = [], []
        hook = student.denoiser.register_forward_hook(lambda net, given, out, asked=asked: asked.append((*given, out)))
        objective.distance = lambda a, b, compared=compared: compared.append(a) or (a - b).square().flatten(1).mean(1)
        objective(step)
        hook.remove()
        x, t, _, denoised = next(call for call in asked if call[-1].requires_grad)
        assert torch.equal(compared[0], changed(denoised, x, t, teacher.schedule))


def test_the_steps_boundary_is_that_of_diffusers():
    from diffusers import LCMScheduler

    x, denoised = torch.randn(5, 2, 2), torch.randn(5, 2, 2)
    for k, sigma_data in ((10.0, 0.5), (0.01, 0.5), (0.1, 2.0)):
        scheduler = LCMScheduler(timestep_scaling=k * 0.5 / sigma_data)
        t = torch.tensor([0, 1, 19, 259, 999])
        c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(t)
        expected = per_sample(c_skip, x) * x + per_sample(c_out, x) * denoised
        found = StepBoundary(timestep_scaling=k, sigma_data=sigma_data)(denoised, x, t, VPSchedule())
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


# (s0, s1, mu0): {k: (mu, N)} of the authors' `create_ema_and_scales_fn` for 800,000 iterations.
SCHEDULES_OF_TRAINING = {
    (2, 150, 0.9): {0: (0.81, 2), 1000: (0.9587315155141827, 6), 100_000: (0.9960320247854624, 54),
                    400_000: (0.9980140403749149, 107), 799_999: (0.9985961794038429, 151)},
    (2, 200, 0.95): {0: (0.9025, 2), 1000: (0.9854516381895564, 8), 100_000: (0.9985561618067164, 72),
                     400_000: (0.9992778201314769, 143), 799_999: (0.9994871985837377, 201)},
}  # fmt: skip


@pytest.mark.parametrize(("s0", "s1", "mu0"), SCHEDULES_OF_TRAINING)
def test_levels_and_decay_of_consistency_training_are_those_of_the_authors_code(s0, s1, mu0):
    growth = Growth(s0, s1 + 1, mu0)
    for k, (mu, n) in SCHEDULES_OF_TRAINING[s0, s1, mu0].items():
        assert growth.levels(k / 800_000) == n and growth.decay_at(k / 800_000) == pytest.approx(mu, rel=1e-12)
    assert Growth(None, 40, 0.95).levels(0.3) == 40 and Growth(None, 40, 0.95).decay_at(0.3) == 0.95
    assert Growth(2, 40, 0.0).decay_at(0.3) == 0.0


def test_the_grid_and_the_target_follow_the_progress():
    teacher = toy_teacher("edm")
    recipe = made(teacher, first_levels=2, teacher_free=True, target_decay=0.9)
    [objective], seen = recipe.objectives, []
    losses = objective.losses
    objective.losses = lambda student, x0, noise, t, *rest: seen.append(t) or losses(student, x0, noise, t, *rest)
    for progress, levels, decay in ((0.0, 2, 0.9**2), (0.999, 8, 0.9 ** (2 / 7))):
        step = step_of(recipe, teacher, size=100)
        step.progress = progress
        assert objective(step).isfinite()
        path = teacher.schedule.path(levels - 1).float()
        assert set(seen[-1].tolist()) == set(path[:-1].tolist())
        objective.after_step(step)
        assert objective.neighbours.target.decay == pytest.approx(decay)


def test_the_first_grid_has_no_more_levels_than_the_last():
    with pytest.raises(ValidationError, match=r"first_levels 9.*levels 8"):
        ConsistencyConfig(levels=8, first_levels=9)


@pytest.mark.parametrize("factor", [1.0, 0.0])
def test_health_sees_a_student_whose_trajectories_all_end_alike(factor, monkeypatch):
    teacher = toy_teacher()
    recipe = Consistency().recipe(teacher, ConsistencyConfig())
    [objective] = recipe.objectives
    monkeypatch.setattr(objective.neighbours, "ends", lambda student, x0, *_, **__: (factor * x0, x0))
    objective(step := step_of(recipe, teacher, size=200))
    [diagnostic] = objective.diagnostics
    assert float(step.logged[diagnostic.name]) == pytest.approx(factor)
    assert diagnostic.judge(factor) == ("ok" if factor else "collapsed")
