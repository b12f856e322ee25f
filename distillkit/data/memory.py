"""Real data held in memory, drawn by (seed, step, sample index)."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.contracts.random import Indices, SampleRNG
from distillkit.contracts.source import Images
from distillkit.contracts.teacher import Teacher

ENCODED_AT_ONCE = 1024


class MemoryImages:
    """Data that fit into memory, encoded once by the teacher's codec.

    Args:
        data: (N, ...) what the codec encodes: images (N, C, H, W) uint8, video, or points (N, D) float32.
        keys: (N,) int64, of the teacher's conditioner; what they are does not matter to an unconditional teacher.
        teacher: whose codec and conditioner make samples and conditions.
        device: where the samples are kept and batches go.

    Raises:
        ValueError: for no data, or another number of keys.
    """

    def __init__(self, data: Tensor, keys: Tensor, teacher: Teacher, device: torch.device) -> None:
        if not len(data) or len(keys) != len(data):
            raise ValueError(f"{len(data)} samples with {len(keys)} keys")
        with torch.no_grad():
            parts = [teacher.codec.encode(part.to(device)) for part in data.split(ENCODED_AT_ONCE)]
        self.sample = torch.cat(parts)
        self.keys = keys.to(device)
        self.conditioner, self.device = teacher.conditioner, device

    def __len__(self) -> int:
        return len(self.sample)

    def batch(self, rng: SampleRNG, step: int, indices: Indices) -> Images:
        """Samples (B, ...) drawn with replacement, and their conditions."""
        chosen = rng.integers("images", step, indices, len(self)).to(self.device)
        return Images(self.sample[chosen], self.conditioner.encode(self.keys[chosen]).to(self.device))
