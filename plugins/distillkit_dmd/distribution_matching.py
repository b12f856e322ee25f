"""The KL objective: move the student's samples along the difference of two scores."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from distillkit import Condition, Diagnostic, Objective, SampleRNG, ScoreEstimator, Step, Teacher
from distillkit.diffusion import karras_sigmas, l2

LEVELS = 1000
"""T, the number of noise levels of the discretised schedule (Yin et al. 2024, appendix)."""


def noise_levels(teacher: Teacher) -> Tensor:
    """The T noise levels of the teacher's Karras grid, (T,) float64, descending."""
    spec = teacher.spec
    return karras_sigmas(LEVELS, sigma_min=spec.sigma_min, sigma_max=spec.sigma_max, rho=spec.rho)


def kl_gradient(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Gradient of D_KL(p_fake || p_real) with respect to samples x (Yin et al. 2024, Eq. 7 and 8).

    (mu_fake - mu_real) / mean_{C,H,W} |x - mu_real|: the paper's weight w_t = sigma_t^2 / alpha_t * C S /
    |mu_real - x|_1 cancels the factors alpha and sigma of the scores, so this form holds for any parametrisation.
    The denominator is taken in float32.

    Args:
        x: the student's samples. real, fake: the teacher's and the fake score's denoised x_t. All (B, C, H, W).
    """
    weight = (x - real).float().abs().mean(dim=(1, 2, 3), keepdim=True)
    return torch.nan_to_num((fake - real) / weight)


class DistributionMatching(Objective):
    """0.5 |x - sg(x - grad)|^2, whose derivative with respect to x is `kl_gradient` / number of elements."""

    needs = ("samples",)
    diagnostics = (
        Diagnostic(
            "kl_gradient_rms",
            ok=(0.01, 3.0),
            watch=(1e-4, 30.0),
            meaning="size of the KL gradient relative to the teacher's denoising residual; near 0 the two scores "
            "agree everywhere (nothing is learnt), large values say that the fake score has come loose",
        ),
        Diagnostic(
            "fake_to_real_error",
            ok=(0.3, 1.5),
            watch=(0.05, 5.0),
            meaning="the fake score's denoising error on the student's samples over the teacher's on the same noise; "
            "it should be a little better than the teacher there, not much worse: raise its learning rate or updates",
        ),
    )

    def __init__(
        self,
        teacher: Teacher,
        fake: ScoreEstimator,
        *,
        weight: float = 1.0,
        guidance: float = 1.0,
        levels: tuple[float, float] = (0.02, 0.98),
    ) -> None:
        super().__init__(weight)
        self.teacher, self.fake, self.guidance = teacher, fake, guidance
        ascending = noise_levels(teacher).flip(0)
        self.sigmas = ascending[round(levels[0] * LEVELS) : round(levels[1] * LEVELS) + 1].float()

    def __call__(self, step: Step) -> Tensor:
        x = step.samples
        with torch.no_grad():
            sigma = step.drawn_from(self.sigmas, "kl/level")
            noisy = x + sigma.view(-1, 1, 1, 1) * step.normal("kl/noise")
            real = self.teacher(noisy, sigma, step.condition, self.guidance)
            fake = self.fake(noisy, sigma, step.condition)
            gradient = kl_gradient(x, real, fake)
            step.log("kl_gradient_rms", gradient.square().mean().sqrt())
            step.log("fake_to_real_error", l2(fake, x).mean() / l2(real, x).mean())
        return 0.5 * (x - (x - gradient).detach()).square().mean()

    @torch.no_grad()
    def previews(self, samples: Tensor, condition: Condition, rng: SampleRNG) -> Mapping[str, Tensor]:
        """The samples at a middling noise level, denoised by both scores: alike once the student has converged."""
        noise = rng.normal("kl/preview", 0, range(len(samples)), samples.shape[1:]).to(samples.device)
        sigma = torch.ones(len(samples), device=samples.device)
        noisy = samples + noise
        return {
            "real score": self.teacher(noisy, sigma, condition, self.guidance),
            "fake score": self.fake(noisy, sigma, condition),
        }
