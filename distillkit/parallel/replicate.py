"""Every process holds every network whole; gradients are averaged while the backward pass still runs."""

from __future__ import annotations

from torch import Tensor, nn

from distillkit.parallel.buckets import Buckets
from distillkit.parallel.strategy import Gradients, Strategy


class Replicate(Strategy):
    """Data parallelism: whole networks, and means of gradients."""

    name = "replicate"

    def gradients(self, module: nn.Module) -> Gradients:
        return Replicated(module.parameters(), self.processes)


class Replicated(Buckets, Gradients):
    """Gradients of whole parameters."""

    def clip(self, most: float) -> Tensor:
        return nn.utils.clip_grad_norm_(self.parameters, most)
