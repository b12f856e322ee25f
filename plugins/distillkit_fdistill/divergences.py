"""What each f-divergence weighs the score difference with, as a function of the density ratio."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

DivergenceName = Literal["reverse-kl", "softened-reverse-kl", "jensen-shannon", "hellinger", "forward-kl", "jeffreys"]

WEIGHTS: Mapping[DivergenceName, Callable[[Tensor], Tensor]] = {
    "reverse-kl": torch.ones_like,
    "softened-reverse-kl": lambda r: 1 / (1 + r),
    "jensen-shannon": lambda r: r / (1 + r),
    "hellinger": lambda r: r.sqrt(),
    "forward-kl": lambda r: r,
    "jeffreys": lambda r: 1 + r,
}
"""h(r) = r^2 f''(r), up to a constant that the normalisation takes away, for the divergence E_q f(r), r = p / q of the
teacher's density p and the student's q (Xu et al. 2025, Theorem 1 and Table 1). f(r) in the same order:

-log r; (r + 1) log((1 + 1/r) / 2); r log r - (r + 1) log((r + 1) / 2); (1 - sqrt r)^2; r log r; (r - 1) log r.

The more h grows with r, the more a sample counts that the teacher makes more often than the student does, and the less
the student leaves out.
"""
