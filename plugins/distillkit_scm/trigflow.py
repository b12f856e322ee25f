"""TrigFlow: any denoiser in the variables of Lu & Song (2024)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from distillkit import Condition
from distillkit.diffusion import Schedule, per_sample

Denoise = Callable[[Tensor, Tensor, Condition], Tensor]
"""(x, t, condition) -> x0: a denoiser, or a teacher that may be guided."""


class TrigFlow:
    """x_t = cos(t) x0 + sin(t) z, z = sigma_d n, t in [0, pi / 2] (Lu & Song 2024, section 3).

    A level is lambda = ln(sigma / alpha), the same in every schedule; tan(t) = exp(lambda) / sigma_d, and d/dlambda =
    sin(t) cos(t) d/dt. cos and sin are taken from the level: near pi / 2 a float32 t has no digits left for them.

    Args:
        schedule: of the denoisers, with its own times.
        sigma_data: sigma_d.
    """

    def __init__(self, schedule: Schedule, sigma_data: float) -> None:
        self.schedule, self.sigma_data = schedule, sigma_data

    def angles(self, level: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos(t) and sin(t) of levels (B,), to multiply samples (B, ...)."""
        tan = per_sample(level.exp() / self.sigma_data, like)
        cos = (1 + tan.square()).rsqrt()
        return cos, tan * cos

    def denoised(self, denoise: Denoise, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """D of x = x_t (B, ...): x0 (B, ...). The schedule's own x is alpha x_t / cos(t)."""
        t = self.schedule.at(level.exp())
        cos, _ = self.angles(level, x)
        return denoise(per_sample(self.schedule.alpha(t), x) / cos * x, t, condition)

    def output(self, denoise: Denoise, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """sigma_d F(x_t / sigma_d, t) = (cos(t) x_t - D) / sin(t): a teacher's velocity dx_t/dt, and of a student what
        its consistency function f = cos(t) x_t - sin(t) sigma_d F has, f(x, 0) = x (Eq. 5)."""
        cos, sin = self.angles(level, x)
        return (cos * x - self.denoised(denoise, x, level, condition)) / sin
