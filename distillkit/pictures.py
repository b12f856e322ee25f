"""Sample grids as PNG."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from distillkit.files import write_bytes

MIN_TILE = 40
GAP = 2


def grid(pixels: Tensor, columns: int, *, enlarge: bool = True) -> Image.Image:
    """Tile (N, C, H, W) uint8 with C = 1 or 3 row by row, by default enlarging small images by whole factors.

    The last row is filled with white where N is not a multiple of `columns`.
    """
    count, channels, height, width = pixels.shape
    scale = max(1, MIN_TILE // max(height, width)) if enlarge else 1
    rows = -(-count // columns)
    canvas = torch.full(
        (channels, rows * (height * scale + GAP) - GAP, columns * (width * scale + GAP) - GAP), 255, dtype=torch.uint8
    )
    enlarged = pixels.cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    for index, image in enumerate(enlarged):
        top, left = index // columns * (height * scale + GAP), index % columns * (width * scale + GAP)
        canvas[:, top : top + height * scale, left : left + width * scale] = image
    array = canvas.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if channels == 1 else array)


def png_bytes(pixels: Tensor) -> bytes:
    """One image (C, H, W) uint8 with C = 1 or 3 as a PNG file's bytes."""
    buffer = io.BytesIO()
    grid(pixels[None], 1, enlarge=False).save(buffer, format="PNG")
    return buffer.getvalue()


def save_grid(path: Path, pixels: Tensor, columns: int, *, enlarge: bool = True) -> None:
    """Write `grid` as a PNG, atomically."""
    buffer = io.BytesIO()
    grid(pixels, columns, enlarge=enlarge).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())
