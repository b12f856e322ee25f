"""Numbers as people write them: '200k', '1.5M', '80,10,1'."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}


def parse_count(value: Any) -> Any:
    """'200k' -> 200000, '1.5M' -> 1500000; other values pass through to pydantic."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([0-9][0-9_]*\.?[0-9]*)\s*([kKmMbB]?)\s*", value)):
        return round(float(match[1].replace("_", "")) * _UNITS[match[2].lower()])
    return value


def _count(value: Any) -> Any:
    found = parse_count(value)
    if isinstance(found, str):
        raise ValueError("write a number, such as 5000, 200k or 1.5M")
    return found


def images_of(value: int | str, duration: float) -> float:
    """A number of images as it is, or a share such as '5%' of a duration."""
    return duration * float(value[:-1]) / 100 if isinstance(value, str) else value


def _count_or_share(value: int | str) -> int | str:
    if isinstance(value, str) and not re.fullmatch(r"(100|[0-9]{1,2}(\.[0-9]+)?)%", value):
        raise ValueError("write images, such as 200k, or a share of the duration, such as 5%")
    if isinstance(value, int) and value < 0:
        raise ValueError("write images from 0, such as 200k, or a share of the duration, such as 5%")
    return value


def parse_numbers(value: Any) -> Any:
    """'2,2,2' -> ['2', '2', '2'], 'none' -> []; other values pass through to pydantic."""
    if not isinstance(value, str):
        return [value] if isinstance(value, int | float) else value
    return [] if value.strip().lower() in ("", "none") else [part.strip() for part in value.split(",")]


def parse_size(value: Any) -> Any:
    """'768' -> (768, 768), '1024x576' -> (1024, 576); other values pass through to pydantic."""
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d{1,6})(?:\s*[xX×]\s*(\d{1,6}))?\s*", value)
        if not found:
            raise ValueError("write the side of a square such as 768, or WIDTHxHEIGHT such as 1024x576")
        return int(found[1]), int(found[2] or found[1])
    return (value, value) if isinstance(value, int) else value


READERS = (parse_count, _count, parse_size)
"""What reads such numbers: fields with one of them take text on the command line."""

Count = Annotated[int, BeforeValidator(_count)]
"""A number of images or samples; text such as '200k' or '1.5M' is understood."""

CountOrShare = Annotated[int | str, BeforeValidator(parse_count), AfterValidator(_count_or_share)]
"""A number of images, or a share of the training's duration such as '5%'."""

Numbers = Annotated[tuple[Annotated[float, Field(ge=0)], ...], BeforeValidator(parse_numbers)]
"""Numbers; text such as '80,10,1' is understood."""

Integers = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(parse_numbers)]
"""Whole numbers from 1; text such as '2,2,2' is understood."""

Side = Annotated[int, Field(ge=1, le=16_384)]
Size = Annotated[tuple[Side, Side], BeforeValidator(parse_size)]
"""Width and height in pixels; text such as '768' or '1024x576' is understood."""


def scaled(value: float, unit: str) -> str:
    """1536, "B" -> '1.54 kB'."""
    for prefix in ("", "k", "M", "G", "T"):
        if value < 999.5:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:,.3g} P{unit}"
