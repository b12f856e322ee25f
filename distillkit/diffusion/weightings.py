"""Weights of a loss over noise levels, by their usual names (Song et al. 2023; Salimans & Ho 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

Weighting = Callable[[Tensor, float], Tensor]
"""(ratio sigma / alpha, sigma_data) -> weight, of ratio's shape."""

WeightingName = Literal["uniform", "karras", "snr+1", "truncated-snr"]

WEIGHTINGS: Mapping[WeightingName, Weighting] = {
    "uniform": lambda ratio, sd: torch.ones_like(ratio),
    "karras": lambda ratio, sd: ratio**-2 + sd**-2,
    "snr+1": lambda ratio, sd: ratio**-2 + 1,
    "truncated-snr": lambda ratio, sd: (ratio**-2).clamp(min=1),
}
