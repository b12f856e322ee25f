"""The fake score: a denoiser that follows the student's distribution."""

from __future__ import annotations

from torch import Tensor

from distillkit import ScoreEstimator, Step
from distillkit.diffusion import lognormal_sigmas, score_matching_loss


class FakeScore(ScoreEstimator):
    """EDM's denoising score matching on the student's samples, ln sigma ~ N(-1.2, 1.2^2)."""

    name = "fake_score"

    def loss(self, step: Step) -> Tensor:
        x, sigma = step.samples.detach(), lognormal_sigmas(step.uniform("fake/level")).to(step.device)
        noisy = x + sigma.view(-1, 1, 1, 1) * step.normal("fake/noise")
        return score_matching_loss(self(noisy, sigma, step.condition), x, sigma, step.student.spec.sigma_data)
