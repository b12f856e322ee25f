"""Random draws per sample: the same numbers for any batch size, device or number of processes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Indices = Sequence[int] | range | npt.NDArray[np.int64]


class SampleRNG:
    """Draws that depend on (seed, purpose, step, sample index) and on nothing else.

    Keys are 64-bit hashes (the SplitMix64 finaliser), uniforms are the keys themselves, and normals come from
    one CPU generator per sample: CUDA generators yield other streams. There is no state, hence nothing to
    save in a checkpoint and nothing that a callback's use of the global generator could disturb.

    Args:
        seed: any non-negative integer below 2**63.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def _keys(self, purpose: str, step: int, indices: Indices) -> npt.NDArray[np.uint64]:
        digest = hashlib.blake2b(f"{self.seed}/{purpose}/{step}".encode(), digest_size=8).digest()
        key = np.asarray(indices, dtype=np.int64).astype(np.uint64)
        key = (key + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(int.from_bytes(digest, "little"))
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return key ^ (key >> np.uint64(31))

    def uniform(self, purpose: str, step: int, indices: Indices) -> Tensor:
        """(B,) float64 in [0, 1)."""
        bits = self._keys(purpose, step, indices) >> np.uint64(11)
        return torch.from_numpy(bits.astype(np.float64) * 2.0**-53)

    def integers(self, purpose: str, step: int, indices: Indices, high: int) -> Tensor:
        """(B,) int64 in [0, high)."""
        return (self.uniform(purpose, step, indices) * high).long()

    def normal(self, purpose: str, step: int, indices: Indices, shape: Sequence[int]) -> Tensor:
        """(B, *shape) float32 standard normal on the CPU."""
        keys = (self._keys(purpose, step, indices) >> np.uint64(1)).tolist()
        out = torch.empty(len(keys), *shape)
        generator = torch.Generator()
        for row, key in zip(out, keys, strict=True):
            row.normal_(generator=generator.manual_seed(key))
        return out
