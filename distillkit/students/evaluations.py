"""A student as a table of numbers: everything between its network evaluations is linear."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.sampler import OneStep, Sampler
from distillkit.contracts.student import StudentGenerator
from distillkit.diffusion.preconditioning import EDMPreconditioning
from distillkit.diffusion.samplers import ConsistencySampler, EulerSampler, RenoisingSampler
from distillkit.diffusion.variance_preserving import VariancePreserving
from distillkit.errors import UsageError


@dataclass(frozen=True)
class Evaluation:
    """x <- skip x + out F(scale x, t), then x <- x + noise n with standard normal n."""

    scale: float
    t: float
    skip: float
    out: float
    noise: float = 0.0

    def blended(self, of_x: float, of_denoised: float, noise: float = 0.0) -> Evaluation:
        """The evaluation that ends with of_x x + of_denoised D instead of D, and adds noise."""
        return Evaluation(self.scale, self.t, of_x + of_denoised * self.skip, of_denoised * self.out, noise)


def evaluations_of(student: StudentGenerator) -> tuple[float, list[Evaluation]]:
    """The standard deviation of the first noise, and one line for each network evaluation.

    Raises:
        UsageError: for a sampler or a denoiser that is not one of distillkit's.
    """
    sampler, denoiser = student.sampler, student.denoiser
    if isinstance(sampler, OneStep):
        return sampler.sigma, [denoising(denoiser, sampler.sigma)]
    if isinstance(sampler, EulerSampler):
        steps = zip(sampler.sigmas, sampler.sigmas[1:], strict=False)
        return sampler.sigmas[0], [denoising(denoiser, a).blended(b / a, 1 - b / a) for a, b in steps]
    if isinstance(sampler, RenoisingSampler):
        following = [*sampler.sigmas[1:], 0.0]
        pairs = zip(sampler.sigmas, following, strict=True)
        return sampler.sigmas[0], [denoising(denoiser, s).blended(0.0, 1.0, noise) for s, noise in pairs]
    if isinstance(sampler, ConsistencySampler):
        return sampler.sigmas[0], _consistency(denoiser, sampler)
    raise _unknown(sampler)


def _unknown(sampler: Sampler) -> UsageError:
    return UsageError(f"students with a {sampler.kind} sampler cannot be exported")


def denoising(denoiser: Denoiser, sigma: float) -> Evaluation:
    """D(x; sigma) of a preconditioned network.

    Raises:
        UsageError: for a preconditioning that is not known.
    """
    if isinstance(denoiser, EDMPreconditioning):
        total = sigma**2 + denoiser.sigma_data**2
        data = denoiser.sigma_data
        return Evaluation(total**-0.5, math.log(sigma) / 4, data**2 / total, sigma * data * total**-0.5)
    if isinstance(denoiser, VariancePreserving):
        scale = (1 + sigma**2) ** -0.5
        t = denoiser.timestep(torch.tensor([sigma], device=denoiser.log_sigmas.device)).item()
        skip, out = {"epsilon": (1.0, -sigma), "v_prediction": (scale**2, -sigma * scale), "sample": (0.0, 1.0)}[
            denoiser.prediction
        ]
        return Evaluation(scale, t, skip, out)
    raise UsageError(f"a {type(denoiser).__name__} cannot be exported; EDM's and variance-preserving ones can")


def _consistency(denoiser: Denoiser, sampler: ConsistencySampler) -> list[Evaluation]:
    """f = c_skip x + (s - smin) / s (D - c'_skip x), see `consistency_function`."""
    data, low = sampler.sigma_data**2, sampler.sigma_min
    made = []
    for k, sigma in enumerate(sampler.sigmas):
        following = sampler.sigmas[k + 1] if k + 1 < len(sampler.sigmas) else low
        share = (sigma - low) / sigma
        of_x = data / ((sigma - low) ** 2 + data) - share * data / (sigma**2 + data)
        made.append(denoising(denoiser, sigma).blended(of_x, share, math.sqrt(max(following**2 - low**2, 0.0))))
    return made
