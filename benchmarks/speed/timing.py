"""Times of several things within one run, in turn, and the memory that autograd holds."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor


def in_turn(actions: Mapping[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, list[float]]:
    """Seconds per call of each action, timed in turn: a drift of the machine's speed meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()
    for _ in range(rounds):
        for name, action in actions.items():
            began = time.perf_counter()
            for _ in range(repeats):
                action()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - began) / repeats)
    return seconds


def ratio(above: list[float], below: list[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def show(title: str, figures: dict[str, float]) -> None:
    """A table of ratios."""
    table = Table("figure", "ratio", title=title)
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}")
    Console(width=110).print(table)


class _Saved:
    """A tensor that a graph holds: it goes when the graph goes."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@dataclass
class SavedBytes:
    """Bytes that graphs hold for their backward passes, each storage once: `alive` now, and at most."""

    alive: int = 0
    most: int = 0
    _holders: dict[int, int] = field(default_factory=dict)

    def hold(self, tensor: Tensor) -> _Saved:
        """Count a tensor until its graph lets it go."""
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        self._holders[place] = self._holders.get(place, 0) + 1
        if self._holders[place] == 1:
            self.alive += size
            self.most = max(self.most, self.alive)
        saved = _Saved(tensor)
        weakref.finalize(saved, self._release, place, size)
        return saved

    def _release(self, place: int, size: int) -> None:
        self._holders[place] -= 1
        if not self._holders[place]:
            del self._holders[place]
            self.alive -= size


@contextmanager
def saved_bytes() -> Iterator[SavedBytes]:
    """Count what autograd keeps while the context lasts, parameters included, which every step has alike."""
    counted = SavedBytes()
    with torch.autograd.graph.saved_tensors_hooks(counted.hold, lambda saved: saved.tensor):
        yield counted
