"""Points of a mixture of Gaussians, drawn anew for every sample of every step."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.random import Indices, SampleRNG
from distillkit.contracts.source import Images


class MixturePoints:
    """Serves points (B, D) in the place of real images.

    Args:
        means: (K, D), of Gaussians that weigh the same.
        spread: their standard deviation in every direction.
    """

    def __init__(self, means: Tensor, spread: float, device: torch.device) -> None:
        self.means, self.spread, self.device = means.to(device), spread, device

    def batch(self, rng: SampleRNG, step: int, indices: Indices) -> Images:
        mode = rng.integers("mode", step, indices, len(self.means)).to(self.device)
        noise = rng.normal("point", step, indices, self.means.shape[1:]).to(self.device)
        return Images(self.means[mode] + self.spread * noise, Condition())
