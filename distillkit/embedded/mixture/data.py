"""Points of the embedded mixture, drawn anew for every sample of every step."""

from __future__ import annotations

import torch

from distillkit.contracts.condition import Condition
from distillkit.contracts.random import Indices, SampleRNG
from distillkit.contracts.step import Images
from distillkit.embedded.mixture.teacher import MODES, SPREAD, means


class MixturePoints:
    """Serves points (B, 2, 1, 1) in the place of real images."""

    def __init__(self, device: torch.device) -> None:
        self.means, self.device = means().float().to(device), device

    def batch(self, rng: SampleRNG, step: int, indices: Indices) -> Images:
        mode = rng.integers("mode", step, indices, MODES).to(self.device)
        noise = rng.normal("point", step, indices, (2,)).to(self.device)
        return Images((self.means[mode] + SPREAD * noise)[:, :, None, None], Condition())
