"""Text under pictures: wrapped to their width, shortened where it is too long, and drawn in the font of Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from distillkit.text import printable

LEGIBLE = 112
"""Least width of a picture with text under it, in pixels."""
MOST_LINES, MOST_CHARACTERS = 4, 400
MARGIN = 3


def font_for(width: int) -> Any:
    """The font of text under a picture of this width."""
    return ImageFont.load_default(max(11, width // 32))


def wrapped(text: str, width: int, font: Any) -> list[str]:
    """The text in lines no wider than `width` pixels, the last one ending in "..." where there is more.

    Words that are wider are broken.
    """
    words = printable(" ".join(text[:MOST_CHARACTERS].split())).split()
    lines: list[str] = []
    for word in words:
        rest = word
        if lines and font.getlength(f"{lines[-1]} {rest}") <= width:
            lines[-1] += f" {rest}"
            continue
        while rest:
            fits = next((n for n in range(len(rest), 1, -1) if font.getlength(rest[:n]) <= width), 1)
            lines.append(rest[:fits])
            rest = rest[fits:]
    if len(lines) > MOST_LINES or len(text) > MOST_CHARACTERS:
        lines = lines[:MOST_LINES]
        while lines[-1] and font.getlength(f"{lines[-1]}...") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "..."
    return lines


def strip(captions: Sequence[str], width: int, gap: int, mode: str) -> Image.Image | None:
    """A white strip with one text under each of the pictures of a row; None where there is no text.

    Args:
        width: of a picture. gap: between two. mode: "L" or "RGB".
    """
    font = font_for(width)
    texts = [wrapped(caption, width - 2 * MARGIN, font) for caption in captions]
    if not any(texts):
        return None
    ascent, descent = font.getmetrics()
    line = ascent + descent + 1
    height = max(map(len, texts)) * line + 2 * MARGIN
    canvas = Image.new(mode, (len(captions) * (width + gap) - gap, height), "white")
    draw = ImageDraw.Draw(canvas)
    for place, lines in enumerate(texts):
        for row, text in enumerate(lines):
            draw.text((place * (width + gap) + MARGIN, MARGIN + row * line), text, fill="black", font=font)
    return canvas
