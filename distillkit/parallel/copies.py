"""Copies of networks that take no memory until one of them is changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class _Lazily(TorchDispatchMode):
    """Tensors that are cloned share their memory until either is written to."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.clone.default and args[0].device.type != "meta":
            try:
                return torch.ops.aten._lazy_clone.default(args[0])
            except RuntimeError:
                # Memory that torch has not asked for itself, such as a file's, cannot be shared so.
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def own_memory(network: nn.Module) -> None:
    """Move weights out of the file that they were read from, one at a time, so that they can be shared."""
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()


@contextmanager
def lazily() -> Iterator[None]:
    """While networks are copied that are spread before anything is written to them: a student, its average and its
    score estimators are one set of weights."""
    with _Lazily():  # type: ignore[no-untyped-call]
        yield
