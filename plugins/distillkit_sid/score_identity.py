"""The objective of score identity distillation."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit import Diagnostic, Objective, Step, Teacher
from distillkit.diffusion import karras_sigmas, l2
from distillkit_sid.fake_score import FakeScore

LEVELS = 1000


class ScoreIdentity(Objective):
    """E w [(1 - alpha) |d|^2 + d . (f_psi - x_g)], d = f_phi(x_t) - f_psi(x_t), with x_t = x_g + sigma n
    (Zhou et al. 2024, Eq. 23 and its normalisation): f_phi the teacher, f_psi the fake score, x_g the student's sample.

    Gradients reach the student through x_g and through both denoisers. w = 1 / mean |x_g - f_phi|, a constant.
    """

    needs = ("samples",)
    diagnostics = (
        Diagnostic(
            "fake_to_real_error",
            ok=(0.3, 1.5),
            watch=(0.05, 5.0),
            meaning="the fake score's denoising error on the student's samples over the teacher's on the same noise; "
            "it should be a little better than the teacher there, not much worse",
        ),
    )

    def __init__(self, teacher: Teacher, fake: FakeScore, *, alpha: float, largest: float, guidance: float) -> None:
        super().__init__()
        self.teacher, self.fake, self.alpha, self.guidance = teacher, fake, alpha, guidance
        spec = teacher.spec
        grid = karras_sigmas(LEVELS, sigma_min=spec.sigma_min, sigma_max=spec.sigma_max, rho=spec.rho)
        self.sigmas = grid.flip(0)[: round(largest * LEVELS)].float()

    def __call__(self, step: Step) -> Tensor:
        x = step.samples
        sigma = step.drawn_from(self.sigmas, "level")
        noisy = x + sigma.view(-1, 1, 1, 1) * step.normal("level/noise")
        real = self.teacher(noisy, sigma, step.condition, self.guidance)
        fake = self.fake(noisy, sigma, step.condition)
        with torch.no_grad():
            step.log("fake_to_real_error", l2(fake, x).mean() / l2(real, x).mean())
        return identity_loss(x, real, fake, self.alpha)


def identity_loss(x: Tensor, real: Tensor, fake: Tensor, alpha: float) -> Tensor:
    """The loss from x_g, f_phi(x_t) and f_psi(x_t), all (B, C, H, W); a scalar, the mean over all elements."""
    weight = 1 / (x - real).detach().float().abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-5)
    apart = real - fake
    return (weight * ((1 - alpha) * apart.square() + apart * (fake - x))).mean()
