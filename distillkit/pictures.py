"""Sample grids as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from distillkit.captions import LEGIBLE, strip
from distillkit.contracts.codec import Content
from distillkit.files import write_bytes

MIN_TILE, MAX_TILE = 40, 160
GAP = 2


def grid(pixels: Tensor, columns: int, *, enlarge: bool = True, captions: Sequence[str] = ()) -> Image.Image:
    """Tile (N, C, H, W) uint8 with C = 1 or 3 row by row, by default enlarging small images by whole factors.

    The last row is filled with white where N is not a multiple of `columns`.

    Args:
        captions: a text under each, or none; rows without any text have no room for it.
    """
    count, channels, height, width = pixels.shape
    texts = [*captions, *[""] * (count - len(captions))]
    wanted = -(-LEGIBLE // width) if any(texts) else MIN_TILE // max(height, width)
    scale = max(1, wanted) if enlarge else 1
    enlarged = pixels.cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    mode, bands = "L" if channels == 1 else "RGB", list[Image.Image]()
    for start in range(0, count, columns):
        bands.append(_row(enlarged[start : start + columns], columns))
        text = strip(texts[start : start + columns], width * scale, GAP, mode)
        bands += [] if text is None else [text]
    canvas = Image.new(mode, (bands[0].width, sum(band.height + GAP for band in bands) - GAP), "white")
    top = 0
    for band in bands:
        canvas.paste(band, (0, top))
        top += band.height + GAP
    return canvas


def _row(images: Tensor, columns: int) -> Image.Image:
    """Images (N, C, H, W) beside each other, N <= columns; white where there is none."""
    _, channels, height, width = images.shape
    canvas = torch.full((channels, height, columns * (width + GAP) - GAP), 255, dtype=torch.uint8)
    for place, image in enumerate(images):
        canvas[:, :, place * (width + GAP) : place * (width + GAP) + width] = image
    array = canvas.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if channels == 1 else array)


def png_bytes(pixels: Tensor) -> bytes:
    """One image (C, H, W) uint8 with C = 1 or 3 as a PNG file's bytes."""
    buffer = io.BytesIO()
    grid(pixels[None], 1, enlarge=False).save(buffer, format="PNG")
    return buffer.getvalue()


def reduced(pixels: Tensor, height: int = MAX_TILE) -> Tensor:
    """Images (N, C, H, W) uint8 no higher than `height`, for pages that hold many of them."""
    if pixels.shape[2] <= height:
        return pixels
    size = (height, max(1, round(pixels.shape[3] * height / pixels.shape[2])))
    small = torch.nn.functional.interpolate(pixels.cpu().float(), size, mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


def save_grid(path: Path, pixels: Tensor, columns: int, *, enlarge: bool = True, captions: Sequence[str] = ()) -> None:
    """Write `grid` as a PNG, atomically."""
    buffer = io.BytesIO()
    grid(pixels, columns, enlarge=enlarge, captions=captions).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def tiles(decoded: Tensor, content: Content, half: float | None = None) -> Tensor:
    """Decoded samples as pictures (N, C, H, W) uint8: images as they are, the frames of a video side by side, and all
    points together as one picture of their density.

    Args:
        half: of the frame around points, so that several pictures can be compared.
    """
    if content == "points":
        return points_picture(decoded.flatten(1).cpu(), half=half)[None]
    if content == "video":
        return decoded.permute(0, 1, 3, 2, 4).flatten(3)
    return decoded


def reach(points: Tensor) -> float:
    """Half of a frame around the origin that shows these points (N, D), without the outermost thousandth."""
    far = points.flatten(1)[:, :2].double().abs().amax(1).cpu()
    far = far[far.isfinite()]
    return 1.15 * torch.quantile(far[:: max(1, len(far) // 100_000)], 1 - 1e-3).item() if len(far) else 1.0


def points_picture(points: Tensor, size: int = 192, half: float | None = None) -> Tensor:
    """A picture of the density of points (N, D): (1, size, size) uint8, dark where there are many.

    The first two coordinates are shown (one alone against its frequency would be another picture, so a second of zeros
    is added). The frame is a square around the points, without the outermost thousandth on each side.

    Args:
        half: show the square from -half to half instead, so that several pictures can be compared.
    """
    plane = torch.nn.functional.pad(points.double(), (0, max(2 - points.shape[1], 0)))[:, :2]
    plane = plane[plane.isfinite().all(1)]
    if half is None and len(plane):
        ends = torch.quantile(plane[:: max(1, len(plane) // 100_000)], torch.tensor([1e-3, 1 - 1e-3]).double(), dim=0)
        middle, reach = ends.mean(0), (ends[1] - ends[0]).max().item() / 2 * 1.15
    else:
        middle, reach = torch.zeros(2, dtype=torch.float64), half or 1.0
    column = ((plane - middle) / max(reach, 1e-12) + 1).mul(size / 2).floor().long()
    column = column[((column >= 0) & (column < size)).all(1)]
    # Rows go down, the second coordinate goes up.
    count = torch.bincount((size - 1 - column[:, 1]) * size + column[:, 0], minlength=size * size).double()
    # Full black is what the densest cells hold, but for single points that fell together.
    full = torch.quantile(count[count > 0], 0.98) if len(column) else torch.ones(())
    return (255 - 255 * (count / full).clamp(0, 1).sqrt()).to(torch.uint8).view(1, size, size)
