"""The cost of training, counted in network passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from distillkit.contracts.denoiser import Denoiser

BACKWARD = 2
"""A backward pass costs about two forward passes (one for the inputs' gradients, one for the weights')."""


class CostMeter:
    """Counts samples through denoisers by role: an evaluation with gradient counts as 1 + 2 forward-equivalents.

    Counting is by Python integers in forward hooks: it never waits for the device.
    """

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self.counts: dict[str, int] = dict(counts or {})

    @property
    def total(self) -> int:
        """Forward-equivalents so far, in samples."""
        return sum(self.counts.values())

    def add(self, role: str, forward_equivalents: int) -> None:
        self.counts[role] = self.counts.get(role, 0) + forward_equivalents

    @contextmanager
    def watch(self, roles: Mapping[str, Denoiser], processes: int = 1) -> Iterator[None]:
        """Count the evaluations of these denoisers while the context lasts, on all of `processes` that share them
        evenly."""

        def counter(role: str) -> Any:
            def count(module: Denoiser, args: tuple[Any, ...]) -> None:
                trained = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
                self.add(role, processes * len(args[0]) * (1 + BACKWARD * trained))

            return count

        handles = [denoiser.register_forward_pre_hook(counter(role)) for role, denoiser in roles.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
