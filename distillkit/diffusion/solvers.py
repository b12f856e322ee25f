"""Deterministic samplers of the probability-flow ODE dx/dsigma = (x - D(x; sigma)) / sigma."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

DenoiseAt = Callable[[Tensor, Tensor], Tensor]
"""(x, sigma) -> x0 with x (B, C, H, W) and sigma (B,) in float32: a denoiser with its condition filled in."""


def euler(denoise: DenoiseAt, noise: Tensor, sigmas: Tensor) -> Tensor:
    """First-order Euler sampler, which is DDIM with eta = 0 in this parametrisation (Song et al. 2021, Eq. 14).

    Args:
        denoise, noise: as in `heun`.
        sigmas: (N + 1,) descending noise levels, the last one included: 0 for samples. N evaluations.

    Returns:
        (B, C, H, W) at the last noise level, float32.
    """
    x, dtype = _start(noise, float(sigmas[0]))
    for sigma, following in pairwise(sigmas.tolist()):
        x = x + (following - sigma) * _slope(denoise, x, sigma, dtype)
    return x.float()


def heun(denoise: DenoiseAt, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Second-order Heun sampler (Karras et al. 2022, Algorithm 1 with S_churn = 0); 2N - 1 evaluations.

    The state is kept in float64 (float32 on devices without it); the network sees float32. The step to zero
    has no correction.

    Args:
        denoise: D(x, sigma).
        noise: standard normal (B, C, H, W).
        sigmas: (N,) descending noise levels without the final zero.

    Returns:
        Samples (B, C, H, W), float32.
    """
    levels = [*sigmas.tolist(), 0.0]
    x, dtype = _start(noise, levels[0])
    for sigma, following in pairwise(levels):
        d = _slope(denoise, x, sigma, dtype)
        x_next = x + (following - sigma) * d
        if following > 0:
            d = (d + _slope(denoise, x_next, following, dtype)) / 2
            x_next = x + (following - sigma) * d
        x = x_next
    return x.float()


def _start(noise: Tensor, sigma: float) -> tuple[Tensor, torch.dtype]:
    dtype = torch.float32 if noise.device.type == "mps" else torch.float64
    return noise.to(dtype) * sigma, dtype


def _slope(denoise: DenoiseAt, x: Tensor, sigma: float, dtype: torch.dtype) -> Tensor:
    level = torch.full((len(x),), sigma, device=x.device)
    return (x - denoise(x.float(), level).to(dtype)) / sigma
