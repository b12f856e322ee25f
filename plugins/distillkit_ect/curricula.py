"""Which neighbours are compared, and how that changes during a training: continuous (ECT) or on a grid (iCT)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from distillkit.diffusion import Schedule
from distillkit.parts import ShrinkingStep, lognormal_between, ratio_range


class Curriculum(Protocol):
    def __call__(self, uniform: Tensor, progress: float, schedule: Schedule, first: float) -> tuple[Tensor, Tensor]:
        """sigma / alpha of both neighbours, s > s_next, each (B,) float64 on the CPU.

        Args:
            uniform: (B,) float64 in [0, 1), on the CPU.
            progress: share of the training that is done, 0 to 1.
            schedule: the student's.
            first: its time of most noise.
        """


@dataclass(frozen=True)
class Continuous:
    """ln s ~ N(mean, std^2), and s_next by a step that shrinks (Geng et al. 2024, arXiv 2406.14548)."""

    step: ShrinkingStep
    mean: float
    std: float

    def __call__(self, uniform: Tensor, progress: float, schedule: Schedule, first: float) -> tuple[Tensor, Tensor]:
        low, high = ratio_range(schedule, first)
        s = lognormal_between(uniform, low, high, mean=self.mean, std=self.std)
        smallest = float(schedule.ratio(torch.tensor([schedule.t_min], dtype=torch.float64)))
        return s, self.step(s, progress, smallest)


@dataclass(frozen=True)
class Doubling:
    """Neighbours on the schedule's own grid of N(k) levels (Song & Dhariwal 2023, arXiv 2310.14189, Table 1).

    N(k) = min(s0 2^floor(k / K'), s1) + 1 with K' = K / (log2 floor(s1 / s0) + 1) and k / K the progress; a pair is
    drawn with p ~ erf((ln s - mean) / (sqrt 2 std)) - erf((ln s_next - mean) / (sqrt 2 std)).

    Args:
        s0, s1: first and last number of steps between levels.
        mean, std: of ln s.
    """

    s0: int
    s1: int
    mean: float
    std: float

    def steps(self, progress: float) -> int:
        """N(k) - 1."""
        phases = math.log2(max(self.s1 // self.s0, 1)) + 1
        return int(min(self.s0 * 2 ** math.floor(progress * phases), self.s1))

    def __call__(self, uniform: Tensor, progress: float, schedule: Schedule, first: float) -> tuple[Tensor, Tensor]:
        s = schedule.ratio(schedule.path(self.steps(progress), first))
        below = torch.special.ndtr((s.log() - self.mean) / self.std)
        cumulated = (below[:-1] - below[1:]).cumsum(0)
        index = torch.searchsorted(cumulated, uniform * cumulated[-1], right=True).clamp(max=len(s) - 2)
        return s[index], s[index + 1]
