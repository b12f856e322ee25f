"""From an image file's bytes to pixels: PNG, JPEG and what else Pillow reads, in bounded memory."""

from __future__ import annotations

import io
import struct
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError

from distillkit.errors import DistillkitError

Pixels = npt.NDArray[np.uint8]
"""(H, W, C) uint8."""

Filter = Literal["box", "bilinear", "bicubic", "lanczos"]
MOST_PIXELS = 2**26
"""Larger images are refused before they are decoded."""

GREY = frozenset({"1", "L", "I;16", "LA"})


def decode(data: bytes, name: str, *, resolution: int | None = None, filter_name: Filter = "lanczos") -> Pixels:
    """The pixels of an image file, (H, W, 1) where it is grey and (H, W, 3) where not.

    Args:
        name: of the file, for messages.
        resolution: crop to the centred square and resize it to so many pixels a side; None leaves the image alone.

    Raises:
        DistillkitError: when it is no image, damaged, or larger than any data set needs.
    """
    if resolution is None and (pixels := _plain_png(data)) is not None:
        return pixels
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DistillkitError(f"{name} claims {image.width} x {image.height} pixels, which is too large")
            return to_pixels(image, resolution, filter_name)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DistillkitError(f"cannot read the image {name}: {str(error).splitlines()[0][:200]}") from error


def to_pixels(image: Image.Image, resolution: int | None, filter_name: Filter) -> Pixels:
    """Pixels of an opened image, grey or RGB; transparency is dropped."""
    mode = "L" if image.mode in GREY else "RGB"
    converted: Any = image if image.mode == mode else image.convert(mode)
    if resolution is not None:
        side = min(converted.size)
        left, top = (converted.width - side) // 2, (converted.height - side) // 2
        # Cropped first: the filter must not see beyond the square.
        converted = converted.crop((left, top, left + side, top + side))
        converted = converted.resize((resolution, resolution), Image.Resampling[filter_name.upper()])
    pixels = np.asarray(converted)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _plain_png(data: bytes) -> Pixels | None:
    """The pixels of an ordinary PNG (8 bits, grey or RGB, not interlaced), or None for anything else.

    torchvision's decoder takes half of Pillow's time and no lock; PNG is lossless, so the pixels are the same. Newer
    torchvisions mean to drop it; without it Pillow does all the work.
    """
    # After signature, length and name of the header: width, height, depth, colour, compression, filter, interlace.
    if len(data) < 33 or data[:16] != b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR":
        return None
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", data[16:29])
    if (
        depth != 8
        or colour not in (0, 2)
        or interlace
        or not 0 < width * height <= MOST_PIXELS
        or b"tRNS" in data[:512]
    ):
        return None
    try:
        read, mode = _torchvision()
        image = read(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode.GRAY if colour == 0 else mode.RGB)
    except (ImportError, RuntimeError):
        return None
    return image.permute(1, 2, 0).numpy()


@cache
def _torchvision() -> Any:
    from torchvision.io import ImageReadMode, decode_png

    return decode_png, ImageReadMode
