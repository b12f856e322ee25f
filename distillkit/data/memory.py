"""Real images held in memory, drawn by (seed, step, sample index)."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.random import Indices, SampleRNG
from distillkit.contracts.step import Images


class ImagesInMemory:
    """Images (N, C, H, W) uint8 with labels (N,), served as float32 in [-1, 1]."""

    def __init__(self, pixels: Tensor, labels: Tensor, device: torch.device) -> None:
        self.sample = (pixels.float() / 127.5 - 1).to(device)
        self.labels = labels.to(device)

    def __len__(self) -> int:
        return len(self.sample)

    def batch(self, rng: SampleRNG, step: int, indices: Indices) -> Images:
        chosen = rng.integers("images", step, indices, len(self)).to(self.sample.device)
        return Images(self.sample[chosen], Condition(labels=self.labels[chosen]))
