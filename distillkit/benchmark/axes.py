"""Axes that show what is close: logarithmic where they can be, and ending where the bad entries begin."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

NEAR = math.log(2)
"""A step between neighbours up to this never ends an axis."""


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` on a line from 0 to 1."""

    low: float
    high: float
    log: bool

    def share(self, value: float) -> float:
        """Where a value lies; below 0 or above 1 for those outside."""
        if self.log:
            return -1.0 if value <= 0 else math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def ticks(self) -> list[float]:
        """Round values, some four to eight."""
        if self.log and self.high / self.low >= 8:
            tens = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if self.high / self.low < 300 else (1, 3) if self.high / self.low < 3000 else (1,)
            every = -(-len(tens) // 8)
            return [value for ten in tens[::every] for step in steps if self.holds(value := float(f"{step}e{ten}"))]
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def focused(values: Iterable[float], also: Iterable[float] = ()) -> Axis:
    """An axis for figures of which less is better.

    It holds the better half of `values`, and of the others as many as follow without a gap wider than all that is
    held so far. What lies above is for the chart to mark at its edge.

    Args:
        also: values that may widen the axis downwards only, such as those on the way of a training.
    """
    found = sorted(value for value in values if math.isfinite(value))
    if not found:
        return Axis(0.0, 1.0, log=False)
    low = min([found[0], *(value for value in also if math.isfinite(value))])
    log = low > 0
    high = found[-1] if len(found) < 4 else _without_stragglers(found, log=log)
    if high <= low:
        high = low * 1.5 if log else low + 1.0
    if not log:
        margin = (high - low) * 0.08
        return Axis(low - margin, high + margin, log=False)
    margin = (high / low) ** 0.08
    return Axis(low / margin, high * margin, log=True)


def counts(values: Iterable[float]) -> Axis:
    """A logarithmic axis for numbers of network evaluations."""
    found = [value for value in values if value > 0] or [1.0]
    return Axis(min(found) / 1.1, max(2 * min(found), *found) * 1.1, log=True)


def _without_stragglers(found: list[float], *, log: bool) -> float:
    """The largest of the sorted values that is no straggler."""
    places = [math.log(value) if log else value for value in found]
    near = NEAR if log else 0.0
    last = (len(found) - 1) // 2
    while last + 1 < len(found) and places[last + 1] - places[last] <= max(places[last] - places[0], near):
        last += 1
    return found[last]


def _round_step(step: float) -> float:
    ten = 10.0 ** math.floor(math.log10(step))
    return ten * next(nice for nice in (1, 2, 2.5, 5, 10) if step <= nice * ten * 1.0001)
