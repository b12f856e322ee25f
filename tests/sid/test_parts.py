"""SiD's loss against its definition, and where its gradients go."""

import pytest
import torch

from distillkit import OneStep
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
