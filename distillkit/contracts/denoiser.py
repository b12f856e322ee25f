"""The one convention of the core: a denoiser D(x, sigma, condition) in Karras' sigma parametrisation."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.errors import DistillkitError


class Denoiser(nn.Module, ABC):
    """D(x, sigma, condition) -> x0: the expectation of the clean sample given x = x0 + sigma * noise.

    Models of other conventions (VP, epsilon, v, flow matching) become denoisers by a change of variables
    where they are loaded, so that every method is written once (Karras et al. 2022, arXiv 2206.00364).
    """

    @abstractmethod
    def forward(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Denoise x (B, C, H, W) at noise levels sigma (B,) in data units; returns (B, C, H, W)."""

    @property
    def bottleneck(self) -> nn.Module:
        """The layer whose output (B, C', H', W') is the network's narrowest: what discriminators look at.

        Raises:
            DistillkitError: for a network that has none.
        """
        layer = getattr(getattr(self, "model", None), "bottleneck", None)
        if not isinstance(layer, nn.Module):
            raise DistillkitError(f"the network of {type(self).__name__} names no bottleneck to take features from")
        return layer

    def with_features(self, x: Tensor, sigma: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """The denoised x, and the bottleneck's features (B, C', H', W') on the way, in one evaluation."""
        kept: list[Tensor] = []
        handle = self.bottleneck.register_forward_hook(lambda module, args, output: kept.append(output))
        try:
            return self(x, sigma, condition), kept[-1]
        finally:
            handle.remove()
