"""What a search varies: each dimension turns a number in [0, 1) into one value of a run's configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

DIGITS = 2
"""Significant digits of the values that are drawn: a preset with more would claim to know more."""

Changes = dict[str, dict[str, Any]]
"""What a setting changes, as an entry of a suite has it: {"training": {"lr": 1e-3}, "settings": {...}}."""


class Dimension(Protocol):
    """One value that is varied; `path` is its part and name, such as "training.lr"."""

    @property
    def path(self) -> str: ...

    def value(self, uniform: float, chosen: Mapping[str, Any]) -> Any:
        """The value at `uniform` in [0, 1), with the values of earlier dimensions by path."""


@dataclass(frozen=True)
class Log:
    """Uniform in the logarithm, from `low` to `high`."""

    path: str
    low: float
    high: float

    def value(self, uniform: float, chosen: Mapping[str, Any]) -> float:
        return rounded(self.low * (self.high / self.low) ** uniform)


@dataclass(frozen=True)
class Times:
    """As `Log`, in multiples of an earlier dimension: a critic's rate in those of the student's."""

    path: str
    of: str
    low: float
    high: float

    def value(self, uniform: float, chosen: Mapping[str, Any]) -> float:
        return rounded(chosen[self.of] * self.low * (self.high / self.low) ** uniform)


@dataclass(frozen=True)
class Choice:
    """One of some values, each as likely."""

    path: str
    values: tuple[Any, ...]

    def value(self, uniform: float, chosen: Mapping[str, Any]) -> Any:
        return self.values[math.floor(uniform * len(self.values))]


def rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def setting(dimensions: Iterable[Dimension], point: Iterable[float]) -> Changes:
    """The changes at a point of the unit cube, a coordinate for each dimension."""
    chosen: dict[str, Any] = {}
    for dimension, uniform in zip(dimensions, point, strict=True):
        chosen[dimension.path] = dimension.value(uniform, chosen)
    changes: Changes = {}
    for path, value in chosen.items():
        place, *inner, name = path.split(".")
        part = changes.setdefault(place, {})
        for key in inner:
            part = part.setdefault(key, {})
        part[name] = value
    return changes
