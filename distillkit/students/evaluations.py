"""A student as a table of numbers: everything between its network evaluations is linear."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.sampler import OneStep
from distillkit.contracts.student import StudentGenerator
from distillkit.diffusion.denoisers import EDMPreconditioning, PredictionDenoiser
from distillkit.diffusion.samplers import ConsistencySampler, EulerSampler, RenoisingSampler
from distillkit.errors import UsageError


@dataclass(frozen=True)
class Evaluation:
    """x <- skip x + out F(scale x, t), clipped where the student clips, then x <- keep x + noise n with standard
    normal n."""

    scale: float
    t: float
    skip: float
    out: float
    keep: float = 1.0
    noise: float = 0.0

    def blended(self, of_x: float, of_denoised: float) -> Evaluation:
        """The evaluation that ends with of_x x + of_denoised D instead of D."""
        return replace(self, skip=of_x + of_denoised * self.skip, out=of_denoised * self.out)


def evaluations_of(student: StudentGenerator) -> tuple[float, list[Evaluation]]:
    """The standard deviation of the first noise, and one line for each network evaluation.

    Classes that derive from distillkit's may do anything else, and so do not count as theirs.

    Raises:
        UsageError: for a sampler or a denoiser that is not one of distillkit's.
    """
    sampler, denoiser, schedule = student.sampler, student.denoiser, student.schedule
    first = sampler.times(schedule)[0]
    if type(sampler) is OneStep:
        table = [denoising(denoiser, first)]
    elif type(sampler) is EulerSampler:
        table = _euler(denoiser, sampler.levels)
    elif type(sampler) is RenoisingSampler:
        table = [denoising(denoiser, t) for t in sampler.levels]
        table = [
            replace(line, keep=_at(schedule.alpha, t), noise=_at(schedule.sigma, t))
            for line, t in zip(table, sampler.levels[1:], strict=False)
        ] + table[-1:]
    elif type(sampler) is ConsistencySampler:
        table = _consistency(denoiser, sampler)
    else:
        raise UsageError(
            f"students with the sampler {type(sampler).__name__} cannot be exported to diffusers; OneStep, "
            "EulerSampler, RenoisingSampler and ConsistencySampler can"
        )
    return schedule.start(torch.ones((), dtype=torch.float64), first).item(), table


def denoising(denoiser: Denoiser, t: float) -> Evaluation:
    """D(x, t) of a network that distillkit turns into a denoiser; `t` is the time that the network itself is given.

    Raises:
        UsageError: for a denoiser of another kind.
    """
    if isinstance(denoiser, EDMPreconditioning) and type(denoiser).forward is EDMPreconditioning.forward:
        total, data = t**2 + denoiser.sigma_data**2, denoiser.sigma_data
        return Evaluation(total**-0.5, math.log(t) / 4, data**2 / total, t * data * total**-0.5)
    if isinstance(denoiser, PredictionDenoiser) and type(denoiser).forward is PredictionDenoiser.forward:
        alpha, sigma = _at(denoiser.schedule.alpha, t), _at(denoiser.schedule.sigma, t)
        skip, out = {
            "epsilon": (1 / alpha, -sigma / alpha),
            "v_prediction": (alpha, -sigma),
            "sample": (0.0, 1.0),
            "velocity": (1.0, -sigma),
        }[denoiser.prediction]
        return Evaluation(1.0, t, skip, out)
    raise UsageError(
        f"a {type(denoiser).__name__} cannot be exported to diffusers; networks in EDMPreconditioning or "
        "PredictionDenoiser can"
    )


def _euler(denoiser: Denoiser, levels: Sequence[float]) -> list[Evaluation]:
    """x' = (u'/u) (s/s') x + (1 - u'/u) / s' D, see `euler_step`."""
    scales, places = denoiser.schedule.linear(torch.tensor(levels, dtype=torch.float64))
    coordinates = zip(levels, scales.tolist(), places.tolist(), strict=True)
    return [
        denoising(denoiser, t).blended(following / u * s / s_next, (1 - following / u) / s_next)
        for (t, s, u), (_, s_next, following) in pairwise(coordinates)
    ]


def _consistency(denoiser: Denoiser, sampler: ConsistencySampler) -> list[Evaluation]:
    """f of the sampler's boundary, which is linear in x and in D."""
    boundary, schedule = sampler.boundary, denoiser.schedule
    one, none = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    made: list[Evaluation] = []
    for t in sampler.levels:
        if made:
            keep, noise = boundary.renoising(t, schedule)
            made[-1] = replace(made[-1], keep=keep, noise=noise)
        of_x, of_denoised = (boundary(d, x, t * one, schedule).item() for d, x in ((none, one), (one, none)))
        made.append(denoising(denoiser, t).blended(of_x, of_denoised))
    return made


def _at(function: Callable[[Tensor], Tensor], t: float) -> float:
    """A schedule's function of one time."""
    return float(function(torch.tensor([t], dtype=torch.float64)))
