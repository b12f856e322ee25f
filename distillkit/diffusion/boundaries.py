"""Boundaries: how the function that consistency models learn is made of a denoiser, so that its end is the sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.schedule import Schedule, per_sample


class Boundary(BaseModel, ABC):
    """f(x, t) from x at t and its denoised D, linear in both, with f = x where there is least noise.

    Plain data, a field of the sampler, so that training and sampling ask for the same function.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def __call__(self, denoised: Tensor, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """f(x, t) for x (B, ...) at t (B,), from D(x, t) of x's shape."""

    def renoising(self, t: float, schedule: Schedule) -> tuple[float, float]:
        """(a, b) with which a sampler goes on at t from a sample x0 with fresh noise n: x = a x0 + b n."""
        level = torch.tensor([t], dtype=torch.float64)
        return schedule.alpha(level).item(), schedule.sigma(level).item()


class KarrasBoundary(Boundary):
    """f(x, t_min) = x / alpha, by EDM's scalings moved to the smallest time (Song et al. 2023, arXiv 2303.01469,
    appendix C).

    In y = x / alpha and s = sigma / alpha: f = c_skip y + c_out F, c_skip = sd^2 / ((s - smin)^2 + sd^2), c_out =
    (s - smin) sd / sqrt(s^2 + sd^2). EDM's D = c'_skip y + c'_out F with c'_out = s sd / sqrt(s^2 + sd^2) gives F, so
    any denoiser will do: f = c_skip y + (s - smin) / s (D - c'_skip y).
    """

    kind: Literal["karras"] = "karras"
    sigma_data: float = Field(0.5, ge=1e-6, le=1e6, description="sd, the standard deviation of the data")

    def __call__(self, denoised: Tensor, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        t = t.to(x.dtype)
        ratio, low = schedule.ratio(t), schedule.ratio(torch.tensor([schedule.t_min], dtype=x.dtype, device=x.device))
        y, s, sd2 = x / per_sample(schedule.alpha(t), x), per_sample(ratio, x), self.sigma_data**2
        above = s - per_sample(low, x)
        residual = denoised - sd2 / (s.square() + sd2) * y
        return sd2 / (above.square() + sd2) * y + above / s * residual

    def renoising(self, t: float, schedule: Schedule) -> tuple[float, float]:
        """x = alpha (x0 + sqrt(s^2 - smin^2) n): x0 has the noise of the smallest time already."""
        levels = torch.tensor([t, schedule.t_min], dtype=torch.float64)
        ratio, low = schedule.ratio(levels).tolist()
        alpha = schedule.alpha(levels)[0].item()
        return alpha, float(alpha * max(ratio**2 - low**2, 0.0) ** 0.5)


class StepBoundary(Boundary):
    """f = c_skip x + c_out D with scalings of the training step t: f(x, 0) = x (Luo et al. 2023, arXiv 2310.04378,
    section 4.1, with the numbers of diffusers' LCMScheduler).

    c_skip = sd^2 / ((k t)^2 + sd^2), c_out = k t / sqrt((k t)^2 + sd^2), k = `timestep_scaling`.
    """

    kind: Literal["steps"] = "steps"
    sigma_data: float = Field(0.5, ge=1e-6, le=1e6, description="sd")
    timestep_scaling: float = Field(10.0, ge=1e-6, le=1e9, description="k, by which training steps are multiplied")

    def __call__(self, denoised: Tensor, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        scaled = per_sample(self.timestep_scaling * t.to(x.dtype), x)
        total = scaled.square() + self.sigma_data**2
        return self.sigma_data**2 / total * x + scaled * total.rsqrt() * denoised


class DenoiserBoundary(Boundary):
    """f = D. That of a flow, D = x - t F, is x at t = 0 whatever the network F says, and needs no scalings (Yang et al.
    2024, arXiv 2407.02398)."""

    kind: Literal["denoiser"] = "denoiser"

    def __call__(self, denoised: Tensor, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        return denoised


BoundaryOf = Annotated[KarrasBoundary | StepBoundary | DenoiserBoundary, Field(discriminator="kind")]


def boundary_for(schedule: Schedule, sigma_data: float = 0.5) -> BoundaryOf:
    """The boundary of a family of schedules: of training steps for vp, none for flows, else Karras et al.'s.

    Args:
        sigma_data: standard deviation of the data, of which Karras et al.'s scalings depend.
    """
    kind = getattr(schedule, "kind", "")
    if kind == "vp":
        return StepBoundary()
    return DenoiserBoundary() if kind == "flow" else KarrasBoundary(sigma_data=sigma_data)


def consistency_function(
    denoise: Callable[[Tensor, Tensor, Condition], Tensor],
    x: Tensor,
    t: Tensor,
    condition: Condition,
    *,
    schedule: Schedule,
    boundary: Boundary,
) -> Tensor:
    """f(x, t) of a denoiser (Song et al. 2023, arXiv 2303.01469, Eq. 5).

    Args:
        denoise: D(x, t, condition). x: (B, ...). t: (B,), at least the schedule's smallest.
    """
    return boundary(denoise(x, t, condition), x, t, schedule)
