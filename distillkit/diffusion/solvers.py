"""Deterministic samplers of the probability-flow ODE dx/dsigma = (x - D(x; sigma)) / sigma."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

DenoiseAt = Callable[[Tensor, Tensor], Tensor]
"""(x, sigma) -> x0 with x (B, C, H, W) and sigma (B,) in float32: a denoiser with its condition filled in."""


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
    dtype = torch.float32 if noise.device.type == "mps" else torch.float64
    levels = [*sigmas.tolist(), 0.0]

    def slope(x: Tensor, sigma: float) -> Tensor:
        level = torch.full((len(x),), sigma, device=x.device)
        return (x - denoise(x.float(), level).to(dtype)) / sigma

    x = noise.to(dtype) * levels[0]
    for sigma, following in pairwise(levels):
        d = slope(x, sigma)
        x_next = x + (following - sigma) * d
        if following > 0:
            d = (d + slope(x_next, following)) / 2
            x_next = x + (following - sigma) * d
        x = x_next
    return x.float()
