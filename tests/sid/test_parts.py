"""SiD's loss against its definition, and where its gradients go."""

import pytest
import torch

from distillkit.diffusion import karras_sigmas
from distillkit_sid.method import SiD, SiDConfig
from distillkit_sid.score_identity import identity_loss


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.2])
def test_both_forms_of_the_loss_are_the_same(alpha):
    """(1 - a) |d|^2 + d (f - x) = d ((r - x) - a d) with d = r - f (Zhou et al. 2024)."""
    generator = torch.Generator().manual_seed(0)
    x, real, fake = (torch.randn(5, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    weight = (x - real).abs().mean(dim=(1, 2, 3), keepdim=True)
    apart = real - fake
    expected = (apart * ((real - x) - alpha * apart) / weight).mean()
    torch.testing.assert_close(identity_loss(x, real, fake, alpha), expected, rtol=1e-6, atol=1e-8)


def test_the_weight_is_a_constant():
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    real, fake = torch.randn(2, 1, 3, 3, dtype=torch.float64), torch.randn(2, 1, 3, 3, dtype=torch.float64)
    [gradient] = torch.autograd.grad(identity_loss(x, real, fake, 1.2), x)
    weight = 1 / (x - real).detach().abs().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(gradient, -weight * (real - fake) / x.numel(), rtol=1e-6, atol=1e-9)


def test_the_student_starts_at_its_own_noise_level_and_the_loss_keeps_to_the_grid(tiny_teacher):
    recipe = SiD().recipe(tiny_teacher, SiDConfig(sigma_init=2.5, largest=0.8))
    assert recipe.student.sampler.sigma == 2.5
    levels = recipe.objectives[0].sigmas
    grid = karras_sigmas(1000).flip(0).float()
    torch.testing.assert_close(levels, grid[:800])
