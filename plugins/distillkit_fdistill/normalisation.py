"""The weights of a batch: a density ratio of mean one at every noise level, and weights of mean one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, distributed, nn


class Normalisation(nn.Module):
    """h(r / m_b) / m_h: in two stages, with the running means m_b of the ratio r in bins b of noise levels, and m_h of
    what h gives (Xu et al. 2025, section 3.3). A true ratio has mean one under the student's density at every level.

    The authors' code takes the means over the batch at hand, in the first stage smoothed. These are of the updates
    before, so that the gradient of a batch is the same however passes and processes share it.

    Args:
        h: the divergence's weight.
        bins: of noise levels.
        decay: of the means, for every update of the student.
        limits: that a ratio is kept to before.
    """

    def __init__(
        self, h: Callable[[Tensor], Tensor], *, bins: int = 10, decay: float = 0.9, limits: tuple[float, float]
    ) -> None:
        super().__init__()
        self.h, self.bins, self.decay, self.limits = h, bins, decay, limits
        self.means: Tensor
        self.seen: Tensor
        self.register_buffer("means", torch.ones(bins + 1))
        # Sums of the present update and how many they are of: zero between updates, when checkpoints are written.
        self.register_buffer("seen", torch.zeros(2, bins + 1), persistent=False)

    @torch.no_grad()
    def forward(self, ratio: Tensor, share: Tensor) -> Tensor:
        """Weights (B,) for ratios (B,) at shares (B,) in [0, 1) of the grid of noise levels."""
        ratio = ratio.float().clamp(*self.limits)
        bins = (share * self.bins).long().clamp(0, self.bins - 1).to(ratio.device)
        weights = self.h(ratio / self.means[bins])
        self.seen[0].index_add_(0, bins, ratio)
        self.seen[1].index_add_(0, bins, torch.ones_like(ratio))
        self.seen[:, -1] += torch.stack([weights.sum(), weights.new_tensor(float(len(weights)))])
        return weights / self.means[-1]

    @torch.no_grad()
    def update(self) -> None:
        """Take in what was seen since the last time, by all processes."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(self.seen)
        sums, counts = self.seen
        found = sums / counts.clamp(min=1)
        self.means.copy_(torch.where(counts > 0, torch.lerp(found, self.means, self.decay), self.means))
        self.seen.zero_()
