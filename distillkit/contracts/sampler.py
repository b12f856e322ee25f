"""How a student turns noise into a sample with its denoiser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.schedule import Schedule

Renoise = Callable[[int], Tensor]
"""k -> fresh standard normal noise (B, ...) for the k-th re-noising of a stochastic sampler."""


class Sampler(BaseModel, ABC):
    """A deterministic or re-noising map from noise to samples; plain data, so that a student's description carries it.

    Levels are times t of the denoiser's own schedule. A plugin offers its own by the hook `distillkit_samplers`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def __call__(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition, renoise: Renoise | None = None
    ) -> Tensor:
        """Map standard normal noise (B, ...) to samples (B, ...)."""

    def times(self, schedule: Schedule) -> tuple[float, ...]:
        """Times of the evaluations, the first of which is where it starts: its field `levels`, or `t`; the schedule's
        largest where it has neither."""
        t = getattr(self, "t", None)
        return tuple(getattr(self, "levels", ())) or (schedule.t_max if t is None else t,)

    def training_samples(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition, renoise: Renoise, uniform: float
    ) -> Tensor:
        """What training sees of the student: by default what inference makes, with gradient through all of it.

        A sampler of several evaluations may end after one of them, chosen by `uniform` in [0, 1), and let gradients
        into that one alone, the ones before being a simulation of inference (Yin et al. 2024, arXiv 2405.14867).
        """
        return self(denoiser, noise, condition, renoise)

    def with_nfe(self, nfe: int, denoiser: Denoiser) -> Sampler:
        """The same sampler with another number of evaluations, where it has a choice.

        Raises:
            ValueError: where it has none.
        """
        raise ValueError(f"{type(self).__name__} has a fixed number of evaluations")

    @property
    def input_guidance(self) -> float | None:
        """The guidance weight that it gives the network as an input, its field `guidance`; None where it gives none."""
        return getattr(self, "guidance", None)

    @property
    def trained_guidance(self) -> tuple[float, float] | None:
        """Smallest and largest weight that the network was trained with, its field `guidance_range`; None where it was
        given none, or nothing is known of them."""
        return getattr(self, "guidance_range", None)

    def with_guidance(self, guidance: float) -> Sampler:
        """The same sampler with another guidance weight, where it is an input of the network.

        Raises:
            ValueError: where it is none.
        """
        if self.input_guidance is None:
            raise ValueError("the student has its guidance learnt in, and its network takes no other")
        return self.model_copy(update={"guidance": guidance})

    def with_levels(self, levels: Sequence[float]) -> Sampler:
        """The same sampler evaluated at other times t, descending, the first of which is where it starts.

        Raises:
            ValueError: where the levels are not free, or their number does not fit.
        """
        raise ValueError(f"the levels of {type(self).__name__} are fixed by its method")


class OneStep(Sampler):
    """G(z, c) = D(start(z, t), t, c): one evaluation at one fixed level (Yin et al. 2024, section 3.1)."""

    t: float | None = Field(None, ge=0, le=1e9, description="time of the evaluation; the schedule's largest if none")

    def __call__(
        self, denoiser: Denoiser, noise: Tensor, condition: Condition, renoise: Renoise | None = None
    ) -> Tensor:
        [t] = self.times(denoiser.schedule)
        return denoiser(denoiser.schedule.start(noise, t), torch.full((len(noise),), t, device=noise.device), condition)

    def with_levels(self, levels: Sequence[float]) -> Sampler:
        if len(levels) != 1:
            raise ValueError(f"a one-step student has one level, and {len(levels)} are given")
        return OneStep(t=levels[0])
