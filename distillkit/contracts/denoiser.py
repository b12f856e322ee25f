"""The one convention of the core: a denoiser D(x, sigma, condition) in Karras' sigma parametrisation."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from distillkit.contracts.condition import Condition


class Denoiser(nn.Module, ABC):
    """D(x, sigma, condition) -> x0: the expectation of the clean sample given x = x0 + sigma * noise.

    Models of other conventions (VP, epsilon, v, flow matching) become denoisers by a change of variables
    where they are loaded, so that every method is written once (Karras et al. 2022, arXiv 2206.00364).
    """

    @abstractmethod
    def forward(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Denoise x (B, C, H, W) at noise levels sigma (B,) in data units; returns (B, C, H, W)."""
