"""From an image file's bytes to pixels: PNG, JPEG and what else Pillow reads, in bounded memory.

Pillow alone: torchvision's PNG decoder is faster and ends the process (a segmentation fault) on damaged files.
"""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from distillkit.errors import DistillkitError

PixelArray = npt.NDArray[np.uint8]
"""(H, W, C) uint8."""

Filter = Literal["box", "bilinear", "bicubic", "lanczos"]
MOST_PIXELS = 2**26
"""Larger images are refused before they are decoded."""

GREY = frozenset({"1", "L", "I;16", "LA"})


def decode(data: bytes, name: str, *, resolution: int | None = None, filter_name: Filter = "lanczos") -> PixelArray:
    """The pixels of an image file, (H, W, 1) where it is grey and (H, W, 3) where not.

    Args:
        name: of the file, for messages.
        resolution: crop to the centred square and resize it to so many pixels a side; None leaves the image alone.

    Raises:
        DistillkitError: when it is no image, damaged, or larger than any data set needs.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DistillkitError(f"{name} claims {image.width} x {image.height} pixels, which is too large")
            return to_pixels(image, resolution, filter_name)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DistillkitError(f"cannot read the image {name}: {str(error).splitlines()[0][:200]}") from error


def to_pixels(image: Image.Image, resolution: int | None, filter_name: Filter) -> PixelArray:
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
