"""SiD's loss against its definition, and where its gradients go."""

import pytest
import torch
from pydantic import ValidationError

from distillkit import Condition, OneStep
from distillkit.diffusion import lognormal_ratios
from distillkit.parts import noise_levels
from distillkit_sid.method import SiD, SiDConfig
from distillkit_sid.score_identity import identity_loss
from tests.parts.toys import SCHEDULES, step_of, toy_teacher


@pytest.mark.parametrize("shape", [(3, 4, 4), (2,), (2, 3, 4, 4)])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.2])
def test_both_forms_of_the_loss_are_the_same(alpha, shape):
    """(1 - a) |d|^2 + d (f - x) = d ((r - x) - a d) with d = r - f (Zhou et al. 2024)."""
    generator = torch.Generator().manual_seed(0)
    x, real, fake = (torch.randn(5, *shape, generator=generator, dtype=torch.float64) for _ in range(3))
    weight = (x - real).abs().flatten(1).mean(1).reshape(-1, *(1,) * len(shape))
    apart = real - fake
    expected = (apart * ((real - x) - alpha * apart) / weight).mean()
    torch.testing.assert_close(identity_loss(x, real, fake, alpha), expected, rtol=1e-6, atol=1e-8)


def test_the_weight_is_a_constant():
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    real, fake = torch.randn(2, 1, 3, 3, dtype=torch.float64), torch.randn(2, 1, 3, 3, dtype=torch.float64)
    [gradient] = torch.autograd.grad(identity_loss(x, real, fake, 1.2), x)
    weight = 1 / (x - real).detach().abs().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(gradient, -weight * (real - fake) / x.numel(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_student_starts_at_ratio_two_and_a_half_where_there_is_one(schedule):
    teacher = toy_teacher(schedule)
    sampler = SiD().recipe(teacher, SiDConfig()).student.sampler
    assert isinstance(sampler, OneStep)
    found, most = teacher.schedule.ratio(
        torch.tensor([sampler.t, teacher.schedule.t_max], dtype=torch.float64)
    ).tolist()
    assert found == pytest.approx(min(2.5, most))
    assert sampler.with_levels([1.0]) == OneStep(t=1.0)


def test_the_whole_objective_and_its_fake_score():
    teacher = toy_teacher()
    recipe = SiD().recipe(teacher, SiDConfig(alpha=0.7, largest=0.8, guidance=2.0, fake_lr=1e-3))
    [objective], [fake], step = recipe.objectives, recipe.learners, step_of(recipe, teacher)
    grid = noise_levels(teacher.schedule)[:800]
    t = grid[(step.uniform("level") * 800).long()]
    noisy = step.samples + t.reshape(-1, 1, 1, 1) * step.normal("level/noise")
    real = teacher(noisy, t, step.condition, 2.0)
    expected = identity_loss(step.samples, real, fake(noisy, t, step.condition), 0.7)
    torch.testing.assert_close(objective(step), expected)
    assert fake.optimizer.model_dump(exclude_unset=True) == {"lr": 1e-3} and recipe.guidance == 2.0
    drawn = fake.draw_levels(step, "fake/level")
    torch.testing.assert_close(drawn, lognormal_ratios(step.uniform("fake/level")).clamp(0.002, 80))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_long_and_short_guidance(schedule):
    """Zhou et al. 2024, arXiv 2406.01561: the guided fake score is trained as one, and used as one."""
    teacher = toy_teacher(schedule)
    settings = {"guidance": 3.0, "fake_guidance": 1.5, "fake_levels": "grid", "smallest": 0.1, "largest": 0.9}
    recipe = SiD().recipe(teacher, SiDConfig(**settings))
    [objective], [fake], step = recipe.objectives, recipe.learners, step_of(recipe, teacher, size=32)
    with torch.no_grad():
        fake.denoiser.model.last.bias += 0.3
    grid = noise_levels(teacher.schedule)[100:900]
    null = teacher.conditioner.null(step.condition)

    def guided(denoiser, x, t, condition, w):
        unconditional = denoiser(x, t, null)
        return unconditional + w * (denoiser(x, t, condition) - unconditional)

    t = grid[(step.uniform("level") * 800).long()]
    noisy = teacher.schedule.add_noise(step.samples, step.normal("level/noise"), t)
    real = guided(teacher.denoiser, noisy, t, step.condition, 3.0)
    expected = identity_loss(step.samples, real, guided(fake.denoiser, noisy, t, step.condition, 1.5), 1.2)
    torch.testing.assert_close(objective(step), expected, rtol=1e-4, atol=1e-6)

    step.release()
    dropped = step.uniform("fake/dropped") < 0.1
    assert 0 < dropped.sum() < 10
    labels = torch.where(dropped, -1, step.condition["labels"])
    t = grid[(step.uniform("fake/level") * 800).long()]
    noisy = teacher.schedule.add_noise(step.samples, step.normal("fake/noise"), t)
    found = guided(fake.denoiser, noisy, t, Condition(labels=labels), 1.5)
    weight = fake.denoiser.loss_weight(t).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(fake.loss(step), (weight * (found - step.samples).square()).mean(), rtol=1e-4, atol=1e-6)


def test_levels_of_the_loss_must_leave_some():
    with pytest.raises(ValidationError, match=r"0\.9.*0\.5"):
        SiDConfig(smallest=0.9, largest=0.5)


def test_the_fake_scores_levels_are_those_that_a_preset_says():
    teacher = toy_teacher()
    uniform = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for settings, mean, std in (({}, -1.2, 1.2), ({"fake_level_mean": -0.4, "fake_level_std": 1.0}, -0.4, 1.0)):
        [fake] = SiD().recipe(teacher, SiDConfig(**settings)).learners
        wanted = teacher.schedule.at(lognormal_ratios(uniform, mean=mean, std=std))
        torch.testing.assert_close(fake.levels(uniform), wanted)
    preset = SiD.preset_for("edm2-img512-xs")
    assert (preset.settings["fake_level_mean"], preset.settings["fake_level_std"]) == (-0.4, 1.0)
