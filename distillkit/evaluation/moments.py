"""Mean and covariance of features, accumulated in float64 while they stream past."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1024
"""Features enter in blocks of this many, whatever the batch size, so that sums come out bit-identical."""


class Moments:
    """Count, mean (d,) and scatter M2 = sum (f - mean)(f - mean)^T (d, d), merged blockwise (Chan et al. 1979)."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)
        self._waiting: list[Tensor] = []
        self._waiting_count = 0

    def add(self, features: Tensor) -> None:
        """Take in features (B, d) in order.

        Raises:
            ValueError: when a feature is not finite.
        """
        if not torch.isfinite(features).all():
            raise ValueError("features are not finite: the images hold NaN or infinity")
        self._waiting.append(features.detach().to("cpu", torch.float64))
        self._waiting_count += len(features)
        while self._waiting_count >= BLOCK:
            waiting = torch.cat(self._waiting)
            self._absorb(waiting[:BLOCK])
            self._waiting, self._waiting_count = [waiting[BLOCK:]], self._waiting_count - BLOCK

    def finish(self) -> Moments:
        """Take in the features that do not fill a block; call once, after the last `add`."""
        if self._waiting_count:
            self._absorb(torch.cat(self._waiting))
            self._waiting, self._waiting_count = [], 0
        return self

    def merge(self, other: Moments) -> None:
        """Take in another stream's finished moments."""
        self._merge(other.count, other.mean, other.scatter)

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (d, d): divided by count - 1."""
        return self.scatter / max(self.count - 1, 1)

    def _absorb(self, block: Tensor) -> None:
        mean = block.mean(0)
        centred = block - mean
        self.scatter.addmm_(centred.T, centred)
        self._shift(len(block), mean)

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if count:
            self.scatter.add_(scatter)
            self._shift(count, mean)

    def _shift(self, count: int, mean: Tensor) -> None:
        """Count in `count` samples of this mean, whose own scatter has been added."""
        total = self.count + count
        delta = mean - self.mean
        self.scatter.addr_(delta, delta, alpha=self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total
