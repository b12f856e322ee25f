"""A teacher in other units: the same model, its samples half as large and its times three times as large."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.schedule import Schedule
from distillkit.contracts.teacher import Teacher

ALPHA, UNIT = 0.5, 3.0


class RescaledSchedule(Schedule):
    """alpha 0.5, sigma = 0.5 ratio, t = 3 ratio, on the grid of a schedule whose t is the ratio.

    Args:
        of: that schedule.
    """

    of: Schedule

    @property
    def t_max(self) -> float:
        return UNIT * self.of.t_max

    @property
    def t_min(self) -> float:
        return UNIT * self.of.t_min

    def alpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, ALPHA)

    def sigma(self, t: Tensor) -> Tensor:
        return ALPHA * t / UNIT

    def at(self, ratio: Tensor) -> Tensor:
        return UNIT * self.of.at(ratio)

    def grid(self, steps: int) -> Tensor:
        return UNIT * self.of.grid(steps)

    def levels(self, count: int, first: float | None = None) -> tuple[float, ...]:
        return tuple(UNIT * t for t in self.of.levels(count, None if first is None else first / UNIT))

    def between(self, t: float, t_next: float) -> float:
        return UNIT * self.of.between(t / UNIT, t_next / UNIT)

    def linear(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(t, 1 / ALPHA), t / UNIT


class RescaledDenoiser(Denoiser):
    """D(x, t) of a denoiser that knows alpha = 1 and t = ratio."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner = inner
        self.sigma_data = getattr(inner, "sigma_data", 0.5)
        self.schedule = RescaledSchedule(of=inner.schedule)

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.inner.forward(x / ALPHA, t / UNIT, condition)

    def loss_weight(self, t: Tensor) -> Tensor:
        return self.inner.loss_weight(t / UNIT)

    def layer(self, name: str) -> nn.Module:
        return self.inner.layer(name)

    def layers_at(self, depths: Sequence[float]) -> list[str]:
        return self.inner.layers_at(depths)

    def time_layers(self) -> Sequence[nn.Module]:
        return self.inner.time_layers()


def rescaled(teacher: Teacher) -> Teacher:
    """The same teacher in other units."""
    return Teacher(RescaledDenoiser(teacher.copy_denoiser()), teacher.spec, teacher.conditioner, teacher.codec)
