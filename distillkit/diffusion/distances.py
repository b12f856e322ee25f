"""Distances between batches of samples (B, ...) of any rank, one value per sample."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]
HUBER, SMALLEST_C = 0.001, 1e-8


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference over all but the batch; (B,)."""
    return (a - b).square().flatten(1).mean(1)


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference over all but the batch; (B,)."""
    return (a - b).abs().flatten(1).mean(1)


def huber(a: Tensor, b: Tensor) -> Tensor:
    """Mean of sqrt(d^2 + c^2) - c over all but the batch, c = 0.001 (diffusers' training of latent consistency models);
    (B,)."""
    return (((a - b).square() + HUBER**2).sqrt() - HUBER).flatten(1).mean(1)


def pseudo_huber(a: Tensor, b: Tensor, c: float | None = None) -> Tensor:
    """sqrt(|d|^2 + c^2) - c, (B,); by default c = 0.00054 sqrt(D), D numbers a sample (Song & Dhariwal 2023,
    arXiv 2310.14189).

    c = 0 gives the norm, whose gradient is kept finite.
    """
    difference = (a - b).flatten(1)
    c = 0.00054 * math.sqrt(difference.shape[1]) if c is None else max(c, SMALLEST_C)
    return (difference.square().sum(1) + c * c).sqrt() - c
