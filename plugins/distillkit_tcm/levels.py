"""The noise levels of both stages."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from distillkit import Step, UsageError
from distillkit.diffusion import Schedule
from distillkit.parts import ShrinkingStep, lognormal_between, ratio_range

PLACES = 4096
"""Where the distribution function of Student's t is known; its inverse is interpolated between them."""


@dataclass(frozen=True)
class WholeRange:
    """The first stage's: ln s ~ N(mean, std^2), steps that shrink (Geng et al. 2024, arXiv 2406.14548)."""

    step: ShrinkingStep
    mean: float
    std: float

    def __call__(self, step: Step, schedule: Schedule, first: float) -> tuple[Tensor, Tensor]:
        """sigma / alpha of both neighbours, s > s_next, each (B,) float64 on the CPU."""
        low, high = ratio_range(schedule, first)
        s = lognormal_between(step.uniform("level"), low, high, mean=self.mean, std=self.std)
        return s, self.step(s, step.progress, smallest(schedule))


@dataclass(frozen=True)
class TruncatedRange:
    """The second stage's: a share of the batch at the boundary, the others above it with ln s from Student's t, whose
    tail reaches the largest levels; steps as short as the first stage's last (Lee et al. 2024, arXiv 2410.14895).

    Args:
        step: of the first stage.
        boundary: sigma / alpha at t'.
        share: rho, of the batch at the boundary.
        mean, std, df: of ln s.
    """

    step: ShrinkingStep
    boundary: float
    share: float
    mean: float
    std: float
    df: float

    def highest(self, schedule: Schedule, first: float) -> float:
        """sigma / alpha at the time `first`, where the range ends.

        Raises:
            UsageError: where the boundary lies outside of the levels below it.
        """
        low, high = ratio_range(schedule, first)
        if not low < self.boundary < high:
            raise UsageError(
                f"the truncated range begins at sigma / alpha {self.boundary:g}, and the student's levels are between "
                f"{low:.3g} and {high:.3g}: set --boundary between them"
            )
        return high

    def __call__(self, step: Step, schedule: Schedule, first: float) -> tuple[Tensor, Tensor]:
        """sigma / alpha of both neighbours, s > s_next, each (B,) float64 on the CPU."""
        high = self.highest(schedule, first)
        s = student_t_between(step.uniform("level"), self.boundary, high, mean=self.mean, std=self.std, df=self.df)
        s = torch.where(self.at_boundary(step.indices, step.before), torch.full_like(s, self.boundary), s)
        return s, self.step(s, 1.0, smallest(schedule))

    def at_boundary(self, indices: Iterable[int], before: int = 0) -> Tensor:
        """Which samples of the total batch are at the boundary, (B,): evenly spread over all samples of the training,
        rho of them, so that batches of any size have their turn.

        Args:
            before: samples of the steps before this one.
        """
        # What is left of rho times the samples before; exact, as all steps must agree on where the next whole one is.
        due = float(before * Fraction(str(self.share)) % 1) + 1e-9
        places = torch.as_tensor(list(indices), dtype=torch.float64)
        return ((places + 1) * self.share + due).floor() > (places * self.share + due).floor()


def smallest(schedule: Schedule) -> float:
    """sigma / alpha of the schedule's time of least noise."""
    return float(schedule.ratio(torch.tensor([schedule.t_min], dtype=torch.float64)))


def student_t_between(uniform: Tensor, low: float, high: float, *, mean: float, std: float, df: float) -> Tensor:
    """s with (ln s - mean) / std from Student's t of df degrees of freedom, kept to [low, high], from uniforms (B,).

    In v of z = sqrt(df) sinh v its density is cosh(v)^-df, which is smooth and nearly even where df is small.
    """
    first, last = (math.asinh((math.log(end) - mean) / std / math.sqrt(df)) for end in (low, high))
    v = torch.linspace(first, last, PLACES, dtype=torch.float64)
    log_density = -df * v.cosh().log()
    density = (log_density - log_density.max()).exp()
    cumulated = torch.cat([density.new_zeros(1), torch.cumulative_trapezoid(density, v)])
    place = uniform * cumulated[-1]
    index = torch.searchsorted(cumulated, place, right=True).clamp(1, PLACES - 1)
    below, above = cumulated[index - 1], cumulated[index]
    inside = torch.lerp(v[index - 1], v[index], (place - below) / (above - below))
    return (math.sqrt(df) * inside.sinh() * std + mean).exp().clamp(low, high)
