"""The cost of training, counted in network passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from distillkit.contracts.denoiser import Denoiser


class CostMeter:
    """Counts samples through denoisers by role, in forward-equivalents.

    A backward pass costs about one forward pass for the inputs' gradients and one for the weights': an evaluation of
    a network in training counts 3, one through which gradients only pass to its input 2, one without gradient 1.

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
                passes = 1
                if torch.is_grad_enabled():
                    trained = any(p.requires_grad for p in module.parameters())
                    passes += 2 if trained else int(args[0].requires_grad)
                self.add(role, processes * len(args[0]) * passes)

            return count

        handles = [denoiser.register_forward_pre_hook(counter(role)) for role, denoiser in roles.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
