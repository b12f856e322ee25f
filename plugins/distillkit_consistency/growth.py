"""How many levels are compared and how slowly the target follows, over a training."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Growth:
    """N(k) = ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 levels and mu(k) = exp(s0 ln mu0 / (N(k) - 1)), from
    s0 levels to s1 + 1 (Song et al. 2023, arXiv 2303.01469, appendix C; of mu the authors' code has N - 1 where the
    paper has N).

    Args:
        first: s0; None for `last` levels and the decay mu0 throughout, as in distillation.
        last: s1 + 1.
        decay: mu0.
    """

    first: int | None
    last: int
    decay: float

    def levels(self, progress: float) -> int:
        """N at k / K = `progress`."""
        if self.first is None:
            return self.last
        square = progress * (self.last**2 - self.first**2) + self.first**2
        return max(math.ceil(math.sqrt(square) - 1), 1) + 1

    def decay_at(self, progress: float) -> float:
        """mu at k / K = `progress`."""
        if self.first is None or not self.decay:
            return self.decay
        return self.decay ** (self.first / (self.levels(progress) - 1))
