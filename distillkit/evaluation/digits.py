"""How many digits figures are shown with: as many as their errors leave meaning to, the same in a whole column."""

from __future__ import annotations

import math
from collections.abc import Iterable

MOST = 5
"""Significant digits of the smallest value, where an error is smaller still or none is known."""


def decimals(values: Iterable[float | None], errors: Iterable[float | None] = ()) -> int:
    """Decimals of a column of values and their errors: two significant digits of the smallest error.

    Where no error is known, the smallest value has four significant digits. No value is shown with more than `MOST`.
    """
    magnitudes = [abs(value) for value in values if value and math.isfinite(value)]
    known = [error for error in errors if error and math.isfinite(error)]
    smallest = min(magnitudes, default=1.0)
    most = MOST - 1 - _exponent(smallest)
    return min(max(0, min(1 - _exponent(min(known)) if known else most - 1, most)), 12)


def fixed(value: float | None, places: int, *, sign: bool = False) -> str:
    """'0.0030', '+0.0030' or '-'."""
    return "-" if value is None else f"{value:{'+' if sign else ''}.{places}f}"


def with_error(value: float, error: float | None, places: int | None = None, *, sign: bool = False) -> str:
    """'0.00106 ± 0.00014', both to the same decimals: those given, or the value's own."""
    places = decimals([value], [error]) if places is None else places
    return fixed(value, places, sign=sign) + ("" if error is None else f" ± {fixed(error, places)}")


def _exponent(value: float) -> int:
    return math.floor(math.log10(value))
