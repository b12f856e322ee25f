"""Distances between image batches (B, C, H, W), one value per sample."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference over (C, H, W); (B,)."""
    return (a - b).square().flatten(1).mean(1)


def pseudo_huber(a: Tensor, b: Tensor) -> Tensor:
    """sqrt(|d|^2 + c^2) - c with c = 0.00054 sqrt(C H W) (Song & Dhariwal 2023, arXiv 2310.14189); (B,)."""
    difference = (a - b).flatten(1)
    c = 0.00054 * math.sqrt(difference.shape[1])
    return (difference.square().sum(1) + c * c).sqrt() - c
