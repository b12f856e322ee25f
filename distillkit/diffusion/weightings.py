"""Weights of a loss over noise levels, by their usual names (Song et al. 2023; Salimans & Ho 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

Weighting = Callable[[Tensor, float], Tensor]
"""(sigma, sigma_data) -> weight, of sigma's shape."""

WeightingName = Literal["uniform", "karras", "snr+1", "truncated-snr"]

WEIGHTINGS: Mapping[WeightingName, Weighting] = {
    "uniform": lambda sigma, sd: torch.ones_like(sigma),
    "karras": lambda sigma, sd: sigma**-2 + sd**-2,
    "snr+1": lambda sigma, sd: sigma**-2 + 1,
    "truncated-snr": lambda sigma, sd: (sigma**-2).clamp(min=1),
}
