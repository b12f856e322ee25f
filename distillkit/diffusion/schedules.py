"""Noise levels: the Karras grid and the training distribution (Karras et al. 2022, Eq. 5 and Table 1)."""

from __future__ import annotations

import torch
from torch import Tensor


def karras_sigmas(steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Descending grid sigma_i = (smax^(1/rho) + i/(N-1) (smin^(1/rho) - smax^(1/rho)))^rho, i = 0..N-1.

    Returns:
        (steps,) float64, without the final zero. A single step is sigma_max.
    """
    ramp = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + ramp * (low - high)) ** rho


def edm_loss_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """lambda(sigma) = (sigma^2 + sd^2) / (sigma sd)^2 = sigma^-2 + sd^-2, for sigma of any shape."""
    return sigma**-2 + sigma_data**-2


def score_matching_loss(denoised: Tensor, x: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """mean lambda(sigma) (denoised - x)^2 over all elements of (B, C, H, W), sigma (B,); a scalar."""
    weight = edm_loss_weight(sigma, sigma_data).view(-1, 1, 1, 1)
    return (weight * (denoised - x).square()).mean()


def lognormal_sigmas(uniform: Tensor, *, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """Noise levels with ln sigma ~ N(mean, std^2) from uniforms in [0, 1) (Karras et al. 2022, Table 1); float32.

    The normal quantile of a uniform: one scalar draw per sample needs no generator of its own.
    """
    level = torch.special.ndtri(uniform.clamp(1e-12, 1 - 1e-12))
    return (level * std + mean).exp().float()
