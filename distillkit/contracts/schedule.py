"""Noise schedules: how a clean sample and noise are mixed at a time t, for every family of models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

SMALLEST_ALPHA = 1e-8
"""alpha is never taken to be smaller, so that ratios and starts are finite where a schedule ends in pure noise."""


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) values as (B, 1, ..., 1), to multiply samples (B, ...) of any rank."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


class Schedule(BaseModel, ABC):
    """x_t = alpha(t) x0 + sigma(t) n with standard normal n; plain data, carried by every denoiser.

    t is the family's own time: the noise level sigma itself (edm), a training step (vp), or a fraction in [0, 1]
    (flow). It grows with the noise. `ratio` = sigma / alpha is the Karras sigma, which is the same number for the same
    signal-to-noise ratio in all families; papers mean it by sigma, and it is how people name levels.

    All methods take and give tensors (B,) of t on any device, and samples (B, ...) of any rank.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    @abstractmethod
    def t_max(self) -> float:
        """The time of most noise: where generation starts."""

    @property
    @abstractmethod
    def t_min(self) -> float:
        """The time of least noise that networks are asked at."""

    @property
    def t_end(self) -> float:
        """The time that the deterministic steps of few-step students lead to: `t_min`, or the clean sample's, which is
        never asked at, where the family's own sampler steps there."""
        return self.t_min

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Share of the signal, of t's shape; at least `SMALLEST_ALPHA`."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Share of the noise, of t's shape."""

    @abstractmethod
    def at(self, ratio: Tensor) -> Tensor:
        """The time whose `ratio` this is; ratios beyond the schedule's ends give its ends. Of ratio's shape."""

    @abstractmethod
    def grid(self, steps: int) -> Tensor:
        """The family's own spacing of times for so many steps, descending; (steps,) float64 on the CPU."""

    def levels(self, count: int, first: float | None = None) -> tuple[float, ...]:
        """Levels of a student of `count` evaluations: from `first` (the largest time by default) down, evenly spaced on
        the family's own grid, whose end is left out.

        Raises:
            ValueError: for no evaluation.
        """
        if count < 1:
            raise ValueError("a student takes at least one evaluation")
        first = self.t_max if first is None else first
        below = (fine := self.grid(max(1000, 2 * count)))[fine < first]
        places = torch.linspace(0, len(below), count + 1)[1:-1].round().long() - 1
        return (first, *below[places.clamp(min=0)].tolist())

    def path(self, steps: int, first: float | None = None) -> Tensor:
        """The steps + 1 times of a way from `first` (the largest time by default) to the smallest in so many steps,
        evenly spaced on the family's own grid; (steps + 1,) float64 on the CPU, descending, both ends among them.

        Other than `grid`, whose times a solver leaves by a step to the clean sample.
        """
        return torch.tensor([*self.levels(steps, first), self.t_min], dtype=torch.float64)

    def landings(self, times: Tensor) -> list[tuple[float, float]]:
        """(alpha, sigma) that the steps of the family's DDIM sampler lead to from times (N,) of its `grid`: those of
        the next time, and at the end the clean sample's, (1, 0)."""
        following = times[1:]
        return [*zip(self.alpha(following).tolist(), self.sigma(following).tolist(), strict=True), (1.0, 0.0)]

    def between(self, t: float, t_next: float) -> float:
        """The time half-way between two on the family's own spacing."""
        return (t + t_next) / 2

    def ratio(self, t: Tensor) -> Tensor:
        """sigma / alpha, the Karras sigma; of t's shape."""
        return self.sigma(t) / self.alpha(t)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """alpha(t) x0 + sigma(t) noise for samples (B, ...) and t (B,)."""
        return per_sample(self.alpha(t), x0) * x0 + per_sample(self.sigma(t), x0) * noise

    def start(self, noise: Tensor, t: float | None = None) -> Tensor:
        """What generation starts from: standard normal noise (B, ...) scaled to time t, by default the largest."""
        level = torch.tensor([self.t_max if t is None else t], dtype=torch.float64)
        return noise * float(self.sigma(level))

    def euler_grid(self, steps: int) -> Tensor:
        """The times of the family's own Euler sampler, where these are not `grid`'s; (steps,) float64, descending."""
        return self.grid(steps)

    def euler_start(self, noise: Tensor, t: float) -> Tensor:
        """What that sampler starts from at time t, of standard normal noise (B, ...)."""
        return self.start(noise, t)

    def limited(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """A predicted sample (B, ...) as the family's DDIM sampler goes on with it, and as it takes it out of x to find
        the noise."""
        return x0, x0

    def sized(self, shape: Sequence[int]) -> Self:
        """The schedule for samples of this shape (without the batch): another where the grid depends on the size."""
        return self

    def linear(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(s, u) such that the probability-flow ODE is dy/du = (y - D) / u for y = s x; both of t's shape.

        What solvers step in. edm and flow: s = 1, u = t.
        """
        return torch.ones_like(t), t
