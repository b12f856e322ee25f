"""What of a network is held in parts, and what of that is gathered at one time."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from distillkit.contracts.denoiser import Denoiser


def outermost(module: nn.Module) -> Iterator[Denoiser]:
    """The denoisers in a module that are in no other."""
    if isinstance(module, Denoiser):
        yield module
        return
    for child in module.children():
        yield from outermost(child)


def units_of(denoiser: Denoiser) -> list[nn.Module]:
    """The blocks that are gathered one at a time, those within others first."""
    chosen = {id(unit) for unit in denoiser.units()}
    return [m for m in reversed([*denoiser.modules()]) if id(m) in chosen and any(True for _ in m.parameters())]
