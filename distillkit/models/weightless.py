"""Networks without weights: what a process builds that is given its part of them later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import nn

_LEFT_OUT: ContextVar[bool] = ContextVar("left_out", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """While the context lasts, weights of denoisers are not read and none are made: those that are loaded or built from
    descriptions are on the device "meta". Conditioners and codecs are as ever."""
    token = _LEFT_OUT.set(True)
    try:
        yield
    finally:
        _LEFT_OUT.reset(token)


def weights_left_out() -> bool:
    """Whether weights are to be left out here."""
    return _LEFT_OUT.get()


def is_weightless(module: nn.Module) -> bool:
    """Whether a network lacks some of its weights."""
    return any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
