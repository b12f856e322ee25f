"""Samplers of few-step students."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.sampler import Renoise, Sampler
from distillkit.contracts.schedule import Schedule
from distillkit.diffusion.boundaries import BoundaryOf, KarrasBoundary, consistency_function
from distillkit.diffusion.solvers import euler


def _descending(levels: tuple[float, ...]) -> tuple[float, ...]:
    if any(t <= t_next for t, t_next in pairwise(levels)):
        raise ValueError("must be descending")
    return levels


Levels = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1e9)], ...], Field(max_length=10_000), AfterValidator(_descending)
]
"""Times of a schedule, descending."""
GuidanceWeight = Annotated[float, Field(ge=0, le=1e6)]


class ConsistencySampler(Sampler):
    """One or several evaluations of the consistency function, with fresh noise in between (Song et al. 2023, Alg. 1).

    x0 = f(x, t_k), then x at t_{k+1} from x0 and the noise, as the boundary says.
    """

    levels: Levels = Field(min_length=1, description="times of the evaluations, descending")
    boundary: BoundaryOf = Field(default_factory=KarrasBoundary, description="how f is made of the denoiser")
    clip: bool = Field(False, description="clip every result to [-1, 1]")
    guidance: float | None = Field(
        None, ge=0, le=1e6, description="guidance weight that the network is given as an input, where it takes one"
    )
    guidance_range: tuple[GuidanceWeight, GuidanceWeight] | None = Field(
        None, description="smallest and largest of the weights that it was trained with, where they are known"
    )
    points: int | None = Field(
        None, ge=2, le=1_000_000, description="of the schedule's grid that f was trained on, where it takes no others"
    )

    def __call__(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition, renoise: Renoise | None = None
    ) -> Tensor:
        schedule, x0 = denoiser.schedule, noise
        if self.guidance is not None:
            condition = condition.extended(guidance=torch.full((len(noise),), self.guidance, device=noise.device))
        for k, t in enumerate(self.levels):
            if k:
                of_sample, of_noise = self.boundary.renoising(t, schedule)
                x = of_sample * x0 + of_noise * _fresh(renoise, k - 1)
            else:
                x = schedule.start(noise, t)
            level = torch.full((len(x),), t, device=x.device)
            x0 = consistency_function(denoiser, x, level, condition, schedule=schedule, boundary=self.boundary)
            x0 = x0.clamp(-1, 1) if self.clip else x0
        return x0

    def with_nfe(self, nfe: int, denoiser: Denoiser) -> Sampler:
        """`nfe` evaluations: the sampler's own levels where there are as many, else evenly spaced on the schedule's own
        grid from the first level down; with `points`, every (points // nfe)-th of these, from the largest down.

        Raises:
            ValueError: for more evaluations than points.
        """
        if nfe == len(self.levels):
            return self
        if self.points is not None:
            if nfe > self.points:
                raise ValueError(f"the student was trained on {self.points} noise levels")
            grid = denoiser.schedule.grid(self.points).tolist()
            return self.with_levels(grid[: nfe * (self.points // nfe) : self.points // nfe])
        return self.model_copy(update={"levels": denoiser.schedule.levels(nfe, self.levels[0])})

    def with_levels(self, levels: Sequence[float]) -> Sampler:
        return self.model_copy(update={"levels": tuple(levels)})


class RenoisingSampler(Sampler):
    """Several evaluations of a denoiser with fresh noise in between: x0 = D(x, t_k), x = add_noise(x0, n, t_{k+1}).

    One level is the one-step generator; more are the multi-step student of DMD2 (Yin et al. 2024, arXiv 2405.14867).
    """

    levels: Levels = Field(min_length=1, description="times of the evaluations, descending")

    def __call__(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition, renoise: Renoise | None = None
    ) -> Tensor:
        return self._sample(denoiser, noise, condition, renoise, len(self.levels), simulated=False)

    def training_samples(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition, renoise: Renoise, uniform: float
    ) -> Tensor:
        """The result of evaluation k, drawn by `uniform`, on what the student itself made of the ones before."""
        evaluations = 1 + int(uniform * len(self.levels))
        return self._sample(denoiser, noise, condition, renoise, evaluations, simulated=True)

    def _sample(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition, renoise: Renoise | None, evaluations: int,
        *, simulated: bool,
    ) -> Tensor:  # fmt: skip
        schedule, with_gradient = denoiser.schedule, torch.is_grad_enabled()
        x = schedule.start(noise, self.levels[0])
        for k, t in enumerate(self.levels[:evaluations]):
            level = torch.full((len(noise),), t, device=noise.device)
            if k:
                x = schedule.add_noise(x, _fresh(renoise, k - 1), level)
            with torch.set_grad_enabled(with_gradient and not (simulated and k < evaluations - 1)):
                x = denoiser(x, level, condition)
        return x

    def with_levels(self, levels: Sequence[float]) -> Sampler:
        return RenoisingSampler(levels=tuple(levels))


class EulerSampler(Sampler):
    """Deterministic Euler (DDIM) steps through fixed levels: what progressive distillation halves."""

    levels: Levels = Field(min_length=2, description="times, descending; the samples' own last")

    @property
    def steps(self) -> int:
        """Number of evaluations."""
        return len(self.levels) - 1

    @classmethod
    def on_grid(cls, steps: int, schedule: Schedule) -> EulerSampler:
        """`steps` steps on the schedule's own spacing, from its largest time to its `t_end`, where they land."""
        return cls(levels=(*schedule.levels(steps), schedule.t_end))

    def refined(self, schedule: Schedule) -> EulerSampler:
        """The same way in twice the steps: every step is halved on the schedule's own spacing."""
        middles = [schedule.between(t, t_next) for t, t_next in pairwise(self.levels)]
        halved = [t for pair in zip(self.levels, middles, strict=False) for t in pair]
        return EulerSampler(levels=(*halved, self.levels[-1]))

    def __call__(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition, renoise: Renoise | None = None
    ) -> Tensor:
        return euler(
            lambda x, t: denoiser(x, t, condition), noise, torch.tensor(self.levels, dtype=torch.float64),
            denoiser.schedule, to_clean=False,
        )  # fmt: skip


def _fresh(renoise: Renoise | None, k: int) -> Tensor:
    if renoise is None:
        raise ValueError("a sampler of several steps needs fresh noise: pass `renoise`")
    return renoise(k)
