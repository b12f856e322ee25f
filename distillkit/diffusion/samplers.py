"""Samplers of few-step students, and the function that consistency models learn."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.sampler import Renoise, Sampler
from distillkit.diffusion.schedules import karras_sigmas
from distillkit.diffusion.solvers import euler


def consistency_function(
    denoiser: Callable[[Tensor, Tensor, Condition], Tensor],
    x: Tensor,
    sigma: Tensor,
    condition: Condition,
    *,
    sigma_min: float,
    sigma_data: float,
) -> Tensor:
    """f(x, sigma) with f(x, sigma_min) = x (Song et al. 2023, arXiv 2303.01469, appendix C).

    f = c_skip x + c_out F, c_skip = sd^2 / ((sigma - smin)^2 + sd^2), c_out = (sigma - smin) sd / sqrt(sigma^2 + sd^2).
    EDM's D = c'_skip x + c'_out F with c'_out = sigma sd / sqrt(sigma^2 + sd^2) gives F, so any denoiser will do:
    f = c_skip x + (sigma - smin) / sigma (D - c'_skip x).

    Args:
        denoiser: D(x, sigma, condition). x: (B, C, H, W). sigma: (B,), at least `sigma_min`.
    """
    s, sd2 = sigma.to(x.dtype).reshape(-1, 1, 1, 1), sigma_data**2
    above = s - sigma_min
    residual = denoiser(x, sigma, condition) - sd2 / (s.square() + sd2) * x
    return sd2 / (above.square() + sd2) * x + above / s * residual


class ConsistencySampler(Sampler):
    """One or several evaluations of the consistency function, with fresh noise in between (Song et al. 2023, Alg. 1).

    x0 = f(x, t_k), then x = x0 + sqrt(t_{k+1}^2 - smin^2) noise.
    """

    kind: Literal["consistency"] = "consistency"
    sigmas: tuple[float, ...] = Field(min_length=1, description="noise levels of the evaluations, descending")
    sigma_min: float = Field(0.002, gt=0, description="level at which the function is the identity")
    sigma_data: float = Field(0.5, gt=0)
    clip: bool = Field(False, description="clip every result to [-1, 1]")

    def __call__(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition, renoise: Renoise | None = None
    ) -> Tensor:
        x = noise * self.sigmas[0]
        for k, sigma in enumerate(self.sigmas):
            if k:
                if renoise is None:
                    raise ValueError("a consistency sampler of several steps needs fresh noise: pass `renoise`")
                x = x + (sigma**2 - self.sigma_min**2) ** 0.5 * renoise(k - 1)
            level = torch.full((len(x),), sigma, device=x.device)
            x = consistency_function(
                denoiser, x, level, condition, sigma_min=self.sigma_min, sigma_data=self.sigma_data
            )
            x = x.clamp(-1, 1) if self.clip else x
        return x

    def with_nfe(self, nfe: int) -> Sampler:
        """The levels of `nfe` evaluations, evenly spaced on the Karras grid between the first one and sigma_min."""
        if nfe < 1:
            raise ValueError("a sampler takes at least one evaluation")
        grid = karras_sigmas(nfe + 1, sigma_min=self.sigma_min, sigma_max=self.sigmas[0])[:-1]
        return self.model_copy(update={"sigmas": tuple(grid.tolist())})


class RenoisingSampler(Sampler):
    """Several evaluations of a denoiser with fresh noise in between: x0 = D(x, s_k), x = x0 + s_{k+1} noise.

    One level is the one-step generator; more are the multi-step student of DMD2 (Yin et al. 2024, arXiv 2405.14867).
    """

    kind: Literal["renoising"] = "renoising"
    sigmas: tuple[float, ...] = Field(min_length=1, description="noise levels of the evaluations, descending")

    def __call__(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition, renoise: Renoise | None = None
    ) -> Tensor:
        return self._sample(denoiser, noise, condition, renoise, len(self.sigmas), simulated=False)

    def training_samples(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition, renoise: Renoise, uniform: float
    ) -> Tensor:
        """The result of evaluation k, drawn by `uniform`, on what the student itself made of the ones before."""
        evaluations = 1 + int(uniform * len(self.sigmas))
        return self._sample(denoiser, noise, condition, renoise, evaluations, simulated=True)

    def _sample(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition, renoise: Renoise | None, evaluations: int,
        *, simulated: bool,
    ) -> Tensor:  # fmt: skip
        x, with_gradient = noise * self.sigmas[0], torch.is_grad_enabled()
        for k, sigma in enumerate(self.sigmas[:evaluations]):
            if k:
                if renoise is None:
                    raise ValueError("a re-noising sampler of several steps needs fresh noise: pass `renoise`")
                x = x + sigma * renoise(k - 1)
            level = torch.full((len(x),), sigma, device=x.device)
            with torch.set_grad_enabled(with_gradient and not (simulated and k < evaluations - 1)):
                x = denoiser(x, level, condition)
        return x


class EulerSampler(Sampler):
    """Deterministic Euler (DDIM) steps through fixed noise levels: what progressive distillation halves."""

    kind: Literal["euler"] = "euler"
    sigmas: tuple[float, ...] = Field(min_length=2, description="noise levels, descending; the samples' own last")

    @property
    def steps(self) -> int:
        """Number of evaluations."""
        return len(self.sigmas) - 1

    @classmethod
    def karras(cls, steps: int, *, sigma_min: float, sigma_max: float, rho: float = 7.0) -> EulerSampler:
        """`steps` steps on the Karras grid of steps + 1 levels, the last of which, `sigma_min`, is where they land."""
        grid = karras_sigmas(steps + 1, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        return cls(sigmas=tuple(grid.tolist()))

    def refined(self, rho: float = 7.0) -> EulerSampler:
        """The same way in twice the steps: levels half-way between neighbours, in sigma^(1/rho)."""
        levels = [sigma ** (1 / rho) for sigma in self.sigmas]
        between = [((a + b) / 2) ** rho for a, b in pairwise(levels)]
        fine = [sigma for pair in zip(self.sigmas, between, strict=False) for sigma in pair]
        return EulerSampler(sigmas=(*fine, self.sigmas[-1]))

    def __call__(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition, renoise: Renoise | None = None
    ) -> Tensor:
        return euler(lambda x, s: denoiser(x, s, condition), noise, torch.tensor(self.sigmas, dtype=torch.float64))
