"""The three families of noise schedules, and distributions of noise levels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, SerializerFunctionWrapHandler, TypeAdapter, model_serializer, model_validator
from torch import Tensor

from distillkit.contracts.schedule import SMALLEST_ALPHA, Schedule
from distillkit.diffusion.shifts import ShiftBySize

Betas = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Spacing = Literal["leading", "trailing", "linspace"]
Sigmas = Literal["even", "karras", "exponential"]


def karras_sigmas(steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Descending grid sigma_i = (smax^(1/rho) + i/(N-1) (smin^(1/rho) - smax^(1/rho)))^rho, i = 0..N-1
    (Karras et al. 2022, Eq. 5).

    Returns:
        (steps,) float64, without the final zero. A single step is sigma_max.
    """
    ramp = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + ramp * (low - high)) ** rho


class EDMSchedule(Schedule):
    """alpha = 1, sigma = t: t is the noise level in data units, spaced by Karras et al. (2022, Eq. 5)."""

    kind: Literal["edm"] = "edm"
    sigma_min: float = Field(0.002, ge=1e-9, le=1e9, description="smallest noise level, in data units")
    sigma_max: float = Field(80.0, ge=1e-9, le=1e9, description="largest noise level, in data units")
    rho: float = Field(7.0, ge=0.1, le=100, description="exponent of the grid")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min:g} must be less than sigma_max {self.sigma_max:g}")
        return self

    @property
    def t_max(self) -> float:
        return self.sigma_max

    @property
    def t_min(self) -> float:
        return self.sigma_min

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def ratio(self, t: Tensor) -> Tensor:
        return t

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return x0 + t.reshape(-1, *(1,) * (x0.ndim - 1)) * noise

    def at(self, ratio: Tensor) -> Tensor:
        return ratio.clamp(self.sigma_min, self.sigma_max)

    def grid(self, steps: int) -> Tensor:
        return karras_sigmas(steps, sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho)

    def levels(self, count: int, first: float | None = None) -> tuple[float, ...]:
        top = self.sigma_max if first is None else first
        if count < 1:
            raise ValueError("a student takes at least one evaluation")
        grid = karras_sigmas(count + 1, sigma_min=self.sigma_min, sigma_max=top, rho=self.rho)
        return (top, *grid[1:-1].tolist())

    def between(self, t: float, t_next: float) -> float:
        return float(((t ** (1 / self.rho) + t_next ** (1 / self.rho)) / 2) ** self.rho)


class VPSchedule(Schedule):
    """alpha^2 + sigma^2 = 1 from discrete betas; t is a training step, 0 .. steps - 1, and may lie between two.

    `linear` betas (Ho et al. 2020, arXiv 2006.11239), `scaled_linear`: linear in their square roots (Rombach et al.
    2022), `squaredcos_cap_v2`: the cosine schedule, betas at most 0.999 (Nichol & Dhariwal 2021). With
    `zero_terminal_snr` the signal vanishes at the last step (Lin et al. 2023, arXiv 2305.08891, Algorithm 1). Between
    steps ln(sigma / alpha) is interpolated linearly.
    """

    kind: Literal["vp"] = "vp"
    steps: int = Field(1000, ge=2, le=100_000, description="training steps")
    betas: Betas = "linear"
    beta_start: float = Field(1e-4, ge=1e-12, lt=1)
    beta_end: float = Field(0.02, ge=1e-12, lt=1)
    zero_terminal_snr: bool = Field(False, description="the last step is pure noise")
    last_alpha: float = Field(
        SMALLEST_ALPHA, ge=SMALLEST_ALPHA, le=0.1, description="alpha of a last step of pure noise"
    )
    spacing: Spacing = Field("leading", description="which steps a sampler takes, as diffusers names it")
    offset: int = Field(0, ge=0, le=100_000, description="added to the steps of leading spacing")
    to_clean: bool = Field(True, description="DDIM ends at the clean sample, not at step 0 (`set_alpha_to_one`)")
    clip: float = Field(0.0, ge=0, le=1e6, description="DDIM keeps the predicted sample within +-this; 0 where it may")
    clip_noise: bool = Field(False, description="the noise that DDIM goes on with is that of the clipped sample")
    sigmas: Sigmas = Field("even", description="how Euler's sampler spaces sigma / alpha, as diffusers names it")

    @model_serializer(mode="wrap")
    def _plain(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What is known of schedules without it is found by a hash of their fields.
        return {name: value for name, value in fields(self).items() if name != "clip_noise" or value}

    @property
    def t_max(self) -> float:
        return float(self.steps - 1)

    @property
    def t_min(self) -> float:
        return 0.0

    def alpha(self, t: Tensor) -> Tensor:
        return (1 + self.ratio(t).square()).rsqrt()

    def sigma(self, t: Tensor) -> Tensor:
        ratio = self.ratio(t)
        return ratio * (1 + ratio.square()).rsqrt()

    def ratio(self, t: Tensor) -> Tensor:
        t = t if t.is_floating_point() else t.float()
        table = _log_ratios(self, t.device, t.dtype)
        below = t.floor().clamp(0, self.steps - 2).long()
        return torch.lerp(table[below], table[below + 1], (t - below).clamp(0, 1).to(table.dtype)).exp()

    def at(self, ratio: Tensor) -> Tensor:
        table, level = _log_ratios(self, ratio.device, ratio.dtype), ratio.log()
        above = torch.searchsorted(table, level.contiguous()).clamp(1, self.steps - 1)
        low, high = table[above - 1], table[above]
        return above - 1 + ((level - low) / (high - low)).clamp(0, 1)

    def grid(self, steps: int) -> Tensor:
        if steps > self.steps or self.spacing == "linspace":
            spaced = torch.linspace(0, self.steps - 1, steps, dtype=torch.float64).flip(0)
            return spaced.round() if steps <= self.steps else spaced
        if self.spacing == "trailing":
            # In numpy's way, where a step is the difference of the first two: halves are rounded alike.
            step = (self.steps - self.steps / steps) - self.steps
            return (self.steps + torch.arange(steps, dtype=torch.float64) * step).round() - 1
        numbers = torch.arange(steps, dtype=torch.float64).flip(0) * (self.steps // steps)
        return (numbers + self.offset).clamp(max=self.steps - 1)

    def levels(self, count: int, first: float | None = None) -> tuple[float, ...]:
        """Evenly spaced training steps, which are those of DMD2's and latent consistency models: 999, 749, 499, 249.

        They lie a share of all steps below `first` apart and are whole numbers, where there are twice as many steps.
        """
        if count < 1:
            raise ValueError("a student takes at least one evaluation")
        first = self.t_max if first is None else first
        if 2 * count > first + 1:
            return tuple(torch.linspace(first, 0, count + 1, dtype=torch.float64)[:-1].tolist())
        apart = (first + 1) / count
        return (first, *(float(round(first - k * apart)) for k in range(1, count)))

    def start(self, noise: Tensor, t: float | None = None) -> Tensor:
        """The noise itself: the variance of x_t is one at every t, for data of unit variance."""
        return noise

    def euler_grid(self, steps: int) -> Tensor:
        """As diffusers' EulerDiscrete: linspace is not rounded, and sigmas may be spaced anew between both ends."""
        times = self.grid(steps)
        if self.spacing == "linspace" and steps <= self.steps:
            times = torch.linspace(0, self.steps - 1, steps, dtype=torch.float64).flip(0)
        if self.sigmas == "even" or steps == 1:
            return times
        low, high = self.ratio(times[[-1, 0]]).tolist()
        if self.sigmas == "karras":
            return self.at(karras_sigmas(steps, sigma_min=low, sigma_max=high))
        return self.at(torch.linspace(math.log(high), math.log(low), steps, dtype=torch.float64).exp())

    def euler_start(self, noise: Tensor, t: float) -> Tensor:
        """As diffusers' EulerDiscrete: of linspace and trailing spacing without the signal's share of the variance."""
        if self.spacing == "leading":
            return noise
        return noise * float(self.sigma(torch.tensor([t], dtype=torch.float64)))

    def limited(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        clipped = x0.clamp(-self.clip, self.clip) if self.clip else x0
        return clipped, clipped if self.clip_noise else x0

    def landings(self, times: Tensor) -> list[tuple[float, float]]:
        """As diffusers' DDIM: a share of all steps further down, which need not be the next time of its grid."""
        lower = times - self.steps // len(times)
        levels = zip(self.alpha(lower).tolist(), self.sigma(lower).tolist(), lower.tolist(), strict=True)
        first = torch.zeros(1, dtype=times.dtype)
        end = (1.0, 0.0) if self.to_clean else (float(self.alpha(first)), float(self.sigma(first)))
        return [(alpha, sigma) if t >= 0 else end for alpha, sigma, t in levels]

    def linear(self, t: Tensor) -> tuple[Tensor, Tensor]:
        ratio = self.ratio(t)
        return (1 + ratio.square()).sqrt(), ratio


class FlowSchedule(Schedule):
    """alpha = 1 - t, sigma = t (rectified flow, Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2022, 2210.02747).

    The grid is shifted to noise, t' = s t / (1 + (s - 1) t) (Esser et al. 2024, arXiv 2403.03206, Eq. 23).
    """

    kind: Literal["flow"] = "flow"
    shift: float = Field(1.0, ge=1e-6, le=1e6, description="s; 1 leaves times evenly spaced")
    smallest: float = Field(1e-3, ge=1e-9, lt=1, description="smallest time that networks are asked at")
    last: float | None = Field(
        None, ge=1e-9, lt=1, description="last time of the grid before it is shifted; none for 1 / steps"
    )
    terminal: float | None = Field(
        None, ge=1e-9, lt=1, description="last time of the grid after it is shifted, to which it is stretched"
    )
    by_size: ShiftBySize | None = Field(None, description="how the shift follows from a sample's size")

    @property
    def t_max(self) -> float:
        return 1.0

    @property
    def t_min(self) -> float:
        return self.smallest

    @property
    def t_end(self) -> float:
        """The clean sample's: no division by its noise is in a flow's step, x' = x + (t' - t) F."""
        return 0.0

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t).clamp(min=SMALLEST_ALPHA)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def at(self, ratio: Tensor) -> Tensor:
        return (ratio / (1 + ratio)).clamp(self.smallest, 1)

    def grid(self, steps: int) -> Tensor:
        even = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
        if self.last is not None:
            even = torch.linspace(1, self.last, steps, dtype=torch.float64)
        times = self.shift * even / (1 + (self.shift - 1) * even)
        if self.terminal is None or steps == 1:
            return times
        return 1 - (1 - times) * (1 - self.terminal) / (1 - times[-1])

    def sized(self, shape: Sequence[int]) -> Self:
        return self if self.by_size is None else self.model_copy(update={"shift": self.by_size.shift(shape)})

    def between(self, t: float, t_next: float) -> float:
        even = sum(time / (self.shift - (self.shift - 1) * time) for time in (t, t_next)) / 2
        return self.shift * even / (1 + (self.shift - 1) * even)


_SCHEDULES: TypeAdapter[EDMSchedule | VPSchedule | FlowSchedule] = TypeAdapter(
    Annotated[EDMSchedule | VPSchedule | FlowSchedule, Field(discriminator="kind")]
)


def schedule_of(description: Mapping[str, Any]) -> Schedule:
    """The schedule of {"kind": "edm", "vp" or "flow", ...}.

    Raises:
        ValueError: for an unknown kind or fields that do not fit.
    """
    return _SCHEDULES.validate_python(dict(description))


@lru_cache(maxsize=32)
def _log_ratios(schedule: VPSchedule, device: torch.device, dtype: torch.dtype) -> Tensor:
    """ln(sigma / alpha) of every step, (steps,), ascending; finite also where the signal vanishes."""
    # The device is named, so that the table exists also where networks are built without memory.
    steps = schedule.steps
    if schedule.betas == "squaredcos_cap_v2":
        level = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        capped = [min(1 - level[i + 1] / level[i], 0.999) for i in range(steps)]
        betas = torch.tensor(capped, dtype=torch.float64, device="cpu")
    else:
        power = 0.5 if schedule.betas == "scaled_linear" else 1.0
        ends = schedule.beta_start**power, schedule.beta_end**power
        betas = torch.linspace(*ends, steps, dtype=torch.float64, device="cpu") ** (1 / power)
    remaining = (1 - betas).cumprod(0)
    if schedule.zero_terminal_snr:
        root = remaining.sqrt()
        remaining = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))).square()
    smallest = schedule.last_alpha if schedule.zero_terminal_snr else SMALLEST_ALPHA
    ratios = ((1 - remaining) / remaining.clamp(min=smallest**2)).sqrt()
    return ratios.log().to(device=device, dtype=dtype)


def lognormal_ratios(uniform: Tensor, *, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """Noise levels with ln(sigma / alpha) ~ N(mean, std^2) from uniforms in [0, 1) (Karras et al. 2022, Table 1).

    The normal quantile of a uniform: one scalar draw per sample needs no generator of its own. Float32.
    """
    level = torch.special.ndtri(uniform.clamp(1e-12, 1 - 1e-12))
    return (level * std + mean).exp().float()
