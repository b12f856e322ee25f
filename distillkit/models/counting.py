"""Network evaluations, counted while samples are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from distillkit.contracts.denoiser import Denoiser


@contextmanager
def count_evaluations(denoiser: Denoiser) -> Iterator[Callable[[], int]]:
    """Count the samples that pass through a denoiser; yields a function that returns the number so far.

    A guided evaluation passes twice as many samples, and so counts double.
    """
    seen = 0

    def count(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal seen
        seen += 0 if denoiser.for_others else len(args[0])

    handle = denoiser.register_forward_pre_hook(count)
    try:
        yield lambda: seen
    finally:
        handle.remove()
