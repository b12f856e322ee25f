"""Objectives from the difference of two scores: the teacher's, and that of the student's samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.health import Diagnostic
from distillkit.contracts.learner import ScoreEstimator
from distillkit.contracts.objective import Objective
from distillkit.contracts.random import SampleRNG
from distillkit.contracts.source import Samples
from distillkit.contracts.step import Step
from distillkit.contracts.teacher import Teacher
from distillkit.diffusion.distances import l2
from distillkit.parts.score_matching import times_between

FAKE_TO_REAL_ERROR = Diagnostic(
    "fake_to_real_error",
    ok=(0.85, 1.3),
    watch=(0.3, 3.0),
    meaning="the fake score's denoising error on the student's samples over the teacher's on the same noise, near 1 in "
    "good trainings; below, the samples are unlike the teacher's: raise the fake score's learning rate or updates; "
    "above, it cannot follow the student, or its own rate is too high",
)
FAKE_TO_GUIDED_ERROR = Diagnostic(
    "fake_to_guided_error",
    ok=(0.0, 1.3),
    watch=(0.0, 3.0),
    meaning="the fake score's denoising error on the student's samples over the guided teacher's on the same noise; "
    "guidance takes a prediction beyond the samples, so that it is far below 1 in good trainings; above, the fake "
    "score cannot follow the student, or its own rate is too high",
)
KL_GRADIENT_RMS = Diagnostic(
    "kl_gradient_rms",
    ok=(0.01, 3.0),
    watch=(1e-4, 30.0),
    meaning="size of the KL gradient relative to the teacher's denoising residual; near 0 the two scores agree "
    "everywhere (nothing is learnt), large values say that the fake score no longer follows the student",
)


def residual(x: Tensor, real: Tensor) -> Tensor:
    """mean |x - mu_real| of every sample, in float32, (B, 1, ..., 1): the scale of the teacher's denoising error."""
    return (x - real).float().abs().mean(dim=tuple(range(1, x.ndim)), keepdim=True)


def kl_gradient(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Gradient of D_KL(p_fake || p_real) with respect to samples x (Yin et al. 2024, Eq. 7 and 8).

    (mu_fake - mu_real) / mean |x - mu_real|: the paper's weight w_t = sigma_t^2 / alpha_t * C S / |mu_real - x|_1
    cancels the factors alpha and sigma of the scores, so this form holds for any schedule and prediction.

    Args:
        x: the student's samples. real, fake: the teacher's and the fake score's denoised x_t. All (B, ...).
    """
    return torch.nan_to_num((fake - real) / residual(x, real))


def fake_error(guidance: float) -> Diagnostic:
    """What judges the fake score beside a teacher of this guidance: one that is exact has the plain teacher's error,
    and a far smaller one than a guided teacher, whose predictions aim beyond the samples."""
    return FAKE_TO_REAL_ERROR if guidance == 1 else FAKE_TO_GUIDED_ERROR


@torch.no_grad()
def log_errors(step: Step, x: Tensor, real: Tensor, fake: Tensor, guidance: float = 1.0) -> None:
    """Log what `fake_error` of the guidance judges, from x and both denoised x_t."""
    step.log(fake_error(guidance).name, l2(fake, x).mean() / l2(real, x).mean())


class DistributionMatching(Objective):
    """0.5 |x - sg(x - grad)|^2, whose derivative with respect to x is `kl_gradient` / number of elements
    (Yin et al. 2024, section 3.2 and Algorithm 2).

    Args:
        teacher: gives the score of the data.
        fake: gives the score of the student's samples.
        weight: of this term.
        guidance: of the teacher; the fake score is not guided.
        rescale: of the guided prediction; see `Teacher`.
        levels: smallest and largest noise level, as shares of the schedule's grid of T = 1000.
    """

    needs = (Samples,)

    def __init__(
        self,
        teacher: Teacher,
        fake: ScoreEstimator,
        *,
        weight: float = 1.0,
        guidance: float = 1.0,
        rescale: float = 0.0,
        levels: tuple[float, float] = (0.02, 0.98),
    ) -> None:
        super().__init__(weight)
        self.teacher, self.fake, self.guidance, self.rescale = teacher, fake, guidance, rescale
        self.times = times_between(teacher.schedule, levels)
        self.diagnostics: Sequence[Diagnostic] = (KL_GRADIENT_RMS, fake_error(guidance))

    def __call__(self, step: Step) -> Tensor:
        x = step.samples
        with torch.no_grad():
            gradient = self.gradient(step, x)
        return 0.5 * (x - (x - gradient).detach()).square().mean()

    def gradient(self, step: Step, x: Tensor) -> Tensor:
        """What the samples x (B, ...) are to move against, (B, ...); without gradient itself."""
        t = step.drawn_from(self.times, "kl/level")
        real, fake = self.denoised(x, step.normal("kl/noise"), t, step.condition)
        gradient = kl_gradient(x, real, fake)
        step.log("kl_gradient_rms", gradient.square().mean().sqrt())
        log_errors(step, x, real, fake, self.guidance)
        return gradient

    def denoised(self, x: Tensor, noise: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """x (B, ...) with noise at t (B,), denoised by the teacher and by the fake score."""
        noisy = self.teacher.schedule.add_noise(x, noise, t)
        real = self.teacher(noisy, t, condition, self.guidance, rescale=self.rescale)
        return real, self.fake(noisy, t, condition)

    @torch.no_grad()
    def previews(self, samples: Tensor, condition: Condition, rng: SampleRNG) -> Mapping[str, Tensor]:
        """The samples with as much noise as signal (ratio 1), denoised by both: alike once the student converged."""
        noise = rng.normal("kl/preview", 0, range(len(samples)), samples.shape[1:]).to(samples.device)
        t = self.teacher.schedule.at(torch.ones(len(samples), device=samples.device))
        real, fake = self.denoised(samples, noise, t, condition)
        return {"real score": real, "fake score": fake}
