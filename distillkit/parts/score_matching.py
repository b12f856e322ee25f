"""Denoising score matching: how an estimator of the score of the student's samples is trained."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.learner import OptimizerConfig, ScoreEstimator
from distillkit.contracts.schedule import Schedule, per_sample
from distillkit.contracts.step import Step
from distillkit.diffusion.schedules import lognormal_ratios
from distillkit.errors import UsageError

LEVELS = 1000
"""T, the number of noise levels of a discretised schedule (Yin et al. 2024, section 3.2)."""

Levels = Callable[[Tensor], Tensor]
"""A distribution of noise levels: uniforms (B,) float64 in [0, 1) -> times (B,) float32, on the CPU."""


def noise_levels(schedule: Schedule) -> Tensor:
    """The T = 1000 times of the schedule's own grid, ascending; (T,) float32."""
    return schedule.grid(LEVELS).flip(0).float()


def times_between(schedule: Schedule, shares: tuple[float, float]) -> Tensor:
    """The times of that grid from its `shares[0]` to its `shares[1]`, both in [0, 1] and counted from the lowest level;
    ascending, on the CPU.

    Raises:
        UsageError: when there is none between them.
    """
    times = noise_levels(schedule)[round(shares[0] * LEVELS) : round(shares[1] * LEVELS) + 1]
    if not len(times):
        raise UsageError(f"there is no noise level between the shares {shares[0]:g} and {shares[1]:g} of the grid")
    return times


def evenly_from(times: Tensor) -> Levels:
    """Each of `times` (N,) alike."""
    return lambda uniform: times[(uniform * len(times)).long()]


def lognormal_levels(schedule: Schedule, *, mean: float = -1.2, std: float = 1.2) -> Levels:
    """ln(sigma / alpha) ~ N(mean, std^2) (Karras et al. 2022, Table 1), kept to the schedule's ends."""
    return lambda uniform: schedule.at(lognormal_ratios(uniform, mean=mean, std=std))


def weighted_error(denoised: Tensor, x0: Tensor, weight: Tensor) -> Tensor:
    """mean w |D - x0|^2 over all elements of samples (B, ...), with weights (B,); a scalar."""
    return (per_sample(weight, x0) * (denoised - x0).square()).mean()


def uncertainty_weighted_error(denoiser: Denoiser, denoised: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """mean lambda(t) / e^u(t) |D - x0|^2 + u(t) (Karras et al. 2024, arXiv 2312.02696, Eq. 21) where the denoiser
    learns u (`log_variance`), by which all noise levels weigh alike; mean lambda |D - x0|^2 elsewhere. A scalar.

    Args:
        denoised: D of the denoiser, (B, ...). x0: (B, ...), clean samples. t: (B,), times of the schedule.
    """
    weight, uncertainty = denoiser.loss_weight(t), denoiser.log_variance(t)
    if uncertainty is None:
        return weighted_error(denoised, x0, weight)
    return weighted_error(denoised, x0, weight * (-uncertainty).exp()) + uncertainty.mean()


def denoising_loss(denoiser: Denoiser, x0: Tensor, noise: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """E lambda(t) |D(x_t, t, c) - x0|^2 with x_t = alpha x0 + sigma n (Vincent 2011; Karras et al. 2022, Eq. 2).

    lambda is the weight that the network was trained with: the loss of what it predicts, whatever that is.

    Args:
        denoiser: D, the network to train.
        x0: (B, ...), clean samples.
        noise: (B, ...), standard normal.
        t: (B,), times of the schedule.
        condition: of every sample.

    Returns:
        A scalar, the mean over all elements.
    """
    denoised = denoiser(denoiser.schedule.add_noise(x0, noise, t), t, condition)
    return weighted_error(denoised, x0, denoiser.loss_weight(t))


class FakeScore(ScoreEstimator):
    """The score of the student's samples: `denoising_loss` on them (Yin et al. 2024, Eq. 6).

    Args:
        denoiser: usually a copy of the teacher's.
        levels: the distribution of noise levels; evenly the T = 1000 of the schedule's grid by default.
        optimizer: see `Learner`.
        every: see `Learner`.
    """

    name = "fake_score"

    def __init__(
        self,
        denoiser: Denoiser,
        levels: Levels | None = None,
        *,
        optimizer: OptimizerConfig | None = None,
        every: int = 1,
    ) -> None:
        super().__init__(denoiser, optimizer=optimizer, every=every)
        self.levels = levels or evenly_from(noise_levels(denoiser.schedule).flip(0))

    def draw_levels(self, step: Step, purpose: str) -> Tensor:
        """Times (B,) on the step's device; one stream for each `purpose`."""
        return self.levels(step.uniform(purpose)).to(step.device, non_blocking=True)

    def loss(self, step: Step) -> Tensor:
        t, noise = self.draw_levels(step, "fake/level"), step.normal("fake/noise")
        return denoising_loss(self.denoiser, step.samples.detach(), noise, t, step.condition)


def own_rate(lr: float | None) -> OptimizerConfig | None:
    """A learner's optimiser that differs from the student's in the learning rate alone; None: in nothing."""
    return None if lr is None else OptimizerConfig(lr=lr)
