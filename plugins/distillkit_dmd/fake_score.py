"""The fake score: a denoiser that follows the student's distribution."""

from __future__ import annotations

from torch import Tensor

from distillkit import Denoiser, OptimizerConfig, ScoreEstimator, Step, Teacher
from distillkit.diffusion import score_matching_loss
from distillkit_dmd.distribution_matching import noise_levels


class FakeScore(ScoreEstimator):
    """Denoising score matching on the student's samples (Yin et al. 2024, Eq. 6):

    mean lambda(sigma) (mu_fake(x + sigma n; sigma, c) - x)^2 over all T noise levels, lambda = sigma^-2 + sd^-2.
    """

    name = "fake_score"

    def __init__(
        self, denoiser: Denoiser, teacher: Teacher, *, optimizer: OptimizerConfig | None = None, every: int = 1
    ) -> None:
        super().__init__(denoiser, optimizer=optimizer, every=every)
        self.sigma_data = teacher.spec.sigma_data
        self.sigmas = noise_levels(teacher).float()

    @classmethod
    def from_teacher(cls, teacher: Teacher, *, optimizer: OptimizerConfig | None = None, every: int = 1) -> FakeScore:
        return cls(teacher.copy_denoiser(), teacher, optimizer=optimizer, every=every)

    def loss(self, step: Step) -> Tensor:
        x = step.samples.detach()
        sigma = step.drawn_from(self.sigmas, "fake/level")
        noisy = x + sigma.view(-1, 1, 1, 1) * step.normal("fake/noise")
        return score_matching_loss(self(noisy, sigma, step.condition), x, sigma, self.sigma_data)
