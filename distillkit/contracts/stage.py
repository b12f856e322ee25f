"""Stages: parts of a training."""

from __future__ import annotations

from dataclasses import dataclass, replace

from distillkit.contracts.sampler import Sampler


@dataclass(frozen=True)
class Stage:
    """A part of the training with its own learning-rate schedule and fresh optimisers.

    Args:
        name: shown to people.
        share: part of the training's duration, relative to the other stages' shares.
        sampler: the student's sampler from this stage on; None keeps the present one.
    """

    name: str = "training"
    share: float = 1.0
    sampler: Sampler | None = None

    def at(self, sampler: Sampler) -> Stage:
        """The same stage with another sampler."""
        return replace(self, sampler=sampler)
