"""Network evaluations, counted while samples are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from distillkit.contracts.denoiser import Denoiser


@contextmanager
def count_evaluations(*denoisers: Denoiser) -> Iterator[Callable[[], int]]:
    """Count the samples that pass through denoisers; yields a function that returns the number so far.

    A guided evaluation passes twice as many samples, or as many through a second network, and so counts double.
    """
    seen = 0

    def count(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal seen
        seen += 0 if getattr(module, "for_others", False) else len(args[0])

    handles = [denoiser.register_forward_pre_hook(count) for denoiser in denoisers]
    try:
        yield lambda: seen
    finally:
        for handle in handles:
            handle.remove()
