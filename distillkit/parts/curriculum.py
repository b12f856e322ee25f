"""How the two neighbours that consistency models compare are drawn and weighted, in words of sigma / alpha."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distillkit.contracts.schedule import Schedule
from distillkit.diffusion.weightings import WEIGHTINGS, WeightingName

LARGEST_RATIO = 80.0
"""sigma / alpha at which consistency models start (Song et al. 2023). Schedules that end in pure noise have levels far
above it, where a loss over the distance of two levels vanishes."""
LOWEST = 1.001
"""Share of the smallest level above which levels are drawn: closer to it, both neighbours are one point."""

StepWeightingName = Literal["inverse-step", "uniform", "karras", "snr+1", "truncated-snr"]


def start_time(schedule: Schedule) -> float:
    """The time of `LARGEST_RATIO`, or the schedule's largest where that has less noise."""
    return float(schedule.at(torch.tensor([LARGEST_RATIO], dtype=torch.float64)))


def ratio_range(schedule: Schedule, first: float) -> tuple[float, float]:
    """(lowest, highest) sigma / alpha of levels below the time `first`."""
    ends = schedule.ratio(torch.tensor([schedule.t_min, first], dtype=torch.float64)).tolist()
    return LOWEST * ends[0], ends[1]


def lognormal_between(uniform: Tensor, low: float, high: float, *, mean: float, std: float) -> Tensor:
    """s with ln s ~ N(mean, std^2) kept to [low, high], from uniforms (B,) float64 in [0, 1)."""
    ends = torch.tensor([low, high], dtype=torch.float64).log().sub(mean).div(std)
    below, above = torch.special.ndtr(ends).tolist()
    z = torch.special.ndtri((below + uniform * (above - below)).clamp(1e-300, 1 - 1e-16))
    return (z * std + mean).exp().clamp(low, high)


@dataclass(frozen=True)
class ShrinkingStep:
    """The mapping function s_next = s (1 - n(s) / q^a), n(s) = 1 + k sigmoid(-b s), s = sigma / alpha (Geng et al.
    2024, arXiv 2406.14548): steps that are shorter in every stage a = 1, 2, ..., longer where there is little noise.

    Args:
        stages: how many values a takes in a training, each for as long.
        q: factor by which the step shrinks from one to the next.
        k, b: of n.
    """

    stages: int
    q: float = 2.0
    k: float = 8.0
    b: float = 1.0

    def __call__(self, s: Tensor, progress: float, low: float) -> Tensor:
        """The neighbour's sigma / alpha, (B,), at least `low`, where a share `progress` of the training is done."""
        a = min(math.floor(progress * self.stages) + 1, self.stages)
        return (s * (1 - (1 + self.k * torch.sigmoid(-self.b * s)) / self.q**a)).clamp(min=low)


def step_weight(name: StepWeightingName, s: Tensor, s_next: Tensor, sigma_data: float) -> Tensor:
    """w of neighbours at s > s_next, both (B,): 1 / (s - s_next), the weight of iCT and ECT, or one of `WEIGHTINGS`."""
    if name == "inverse-step":
        return 1 / (s - s_next)
    known: WeightingName = name
    return WEIGHTINGS[known](s, sigma_data)
