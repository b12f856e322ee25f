"""The sampler of average velocities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from distillkit import Condition, Denoiser, Sampler
from distillkit.diffusion import Levels, euler_step
from distillkit_meanflow.two_times import UNTIL


class MeanFlowSampler(Sampler):
    """z_r = z_t - (t - r) u(z_t, r, t) from one level to the next and from the last to the clean sample, r = 0
    (Geng et al. 2025, Eq. 12). With X = z_t - t u these are Euler's steps with X for x0, in every schedule.
    """

    levels: Levels = Field(min_length=1, description="times of the evaluations, descending")

    def __call__(self, denoiser: Denoiser, noise: Tensor, condition: Condition, renoise: object = None) -> Tensor:
        schedule = denoiser.schedule
        times = torch.tensor(self.levels, device=noise.device)
        until = [*schedule.ratio(times[1:]), torch.zeros((), device=noise.device)]
        x = schedule.start(noise, self.levels[0])
        for k, ratio in enumerate(until):
            t = times[k].expand(len(x))
            end = denoiser(x, t, condition.extended(**{UNTIL: ratio.expand(len(x))}))
            x = end if k + 1 == len(times) else euler_step(schedule, x, end, t, times[k + 1].expand(len(x)))
        return x

    def with_nfe(self, nfe: int, denoiser: Denoiser) -> Sampler:
        """`nfe` steps, evenly spaced on the schedule's own grid from the first level down."""
        return self.with_levels(denoiser.schedule.levels(nfe, self.levels[0]))

    def with_levels(self, levels: Sequence[float]) -> Sampler:
        return MeanFlowSampler(levels=tuple(levels))
