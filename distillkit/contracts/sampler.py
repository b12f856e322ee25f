"""How a student turns noise into a sample with its denoiser."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser

Renoise = Callable[[int], Tensor]
"""k -> fresh standard normal noise (B, C, H, W) for the k-th re-noising of a stochastic sampler."""


class Sampler(BaseModel):
    """A deterministic or re-noising map from noise to samples; plain data, so a student can carry it in JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str

    @abstractmethod
    def __call__(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition, renoise: Renoise | None = None
    ) -> Tensor:
        """Map standard normal noise (B, C, H, W) to samples (B, C, H, W)."""

    def training_samples(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition, renoise: Renoise, uniform: float
    ) -> Tensor:
        """What training sees of the student: by default what inference makes, with gradient through all of it.

        A sampler of several evaluations may end after one of them, chosen by `uniform` in [0, 1), and let gradients
        into that one alone, the ones before being a simulation of inference (Yin et al. 2024, arXiv 2405.14867).
        """
        return self(denoiser, noise, condition, renoise)

    def with_nfe(self, nfe: int) -> Sampler:
        """The same sampler with another number of evaluations, where it has a choice.

        Raises:
            ValueError: where it has none.
        """
        raise ValueError(f"a {self.kind} sampler has a fixed number of evaluations")


class OneStep(Sampler):
    """G(z, c) = D(sigma z; sigma, c): one evaluation at one fixed noise level (Yin et al. 2024, section 3.1)."""

    kind: Literal["one-step"] = "one-step"
    sigma: float = Field(80.0, gt=0, description="the noise level, in data units")

    def __call__(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition, renoise: Renoise | None = None
    ) -> Tensor:
        level = torch.full((len(noise),), self.sigma, device=noise.device)
        return denoiser(noise * self.sigma, level, condition)
