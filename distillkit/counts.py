"""Numbers as people write them: '200k', '1.5M', '80,10,1'."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}


def parse_count(value: Any) -> Any:
    """'200k' -> 200000, '1.5M' -> 1500000; other values pass through to pydantic."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([0-9][0-9_]*\.?[0-9]*)\s*([kKmMbB]?)\s*", value)):
        return round(float(match[1].replace("_", "")) * _UNITS[match[2].lower()])
    return value


def parse_numbers(value: Any) -> Any:
    """'2,2,2' -> ['2', '2', '2'], 'none' -> []; other values pass through to pydantic."""
    if not isinstance(value, str):
        return [value] if isinstance(value, int | float) else value
    return [] if value.strip().lower() in ("", "none") else [part.strip() for part in value.split(",")]


Count = Annotated[int, BeforeValidator(parse_count)]
"""A number of images or samples; text such as '200k' or '1.5M' is understood."""

Numbers = Annotated[tuple[Annotated[float, Field(ge=0)], ...], BeforeValidator(parse_numbers)]
"""Numbers; text such as '80,10,1' is understood."""

Integers = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(parse_numbers)]
"""Whole numbers from 1; text such as '2,2,2' is understood."""
