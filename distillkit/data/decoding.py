"""From an image file's bytes to pixels: the formats named here alone, upright, in 8 bits, in bounded memory.

Pillow alone: torchvision's PNG decoder is faster and ends the process (a segmentation fault) on damaged files.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from distillkit.errors import DistillkitError, UsageError

PixelArray = npt.NDArray[np.uint8]
"""(H, W, C) uint8."""

Filter = Literal["box", "bilinear", "bicubic", "lanczos"]

FORMATS = (
    "PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "QOI", "PSD", "PCX", "SGI",
    "SUN", "DDS",
)  # fmt: skip
"""The formats that are opened, whatever a file is called. Pillow knows others: EPS would start Ghostscript, icons hold
pictures of other sizes than they claim, and HEIF needs the package pillow-heif."""

MOST_PIXELS = 2**26
"""Larger images are refused before they are decoded, where no other limit is given."""

GREY = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"})
SIXTEEN_BITS = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
ORIENTATION = 0x0112
TILE_SIZES = (322, 323)

NEED_ALL = frozenset({"WEBP", "GIF", "TIFF", "AVIF", "HEIF", "JPEG2000", "PSD", "MPO"})
"""Formats whose beginning does not tell size and number of pictures."""


class Unfit(DistillkitError):
    """An image among others that are right."""


class Damaged(Unfit):
    """An image that cannot be read: what `--skip-damaged` replaces."""


@cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that the installed Pillow can open."""
    Image.init()
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def suffixes() -> frozenset[str]:
    """What names of image files end in."""
    known = {*formats(), "TGA"}
    return frozenset(end for end, name in Image.registered_extensions().items() if name in known)


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before it is decoded.

    Args:
        width, height: upright.
        grey: whether it has no colours.
        alpha: whether it may be transparent.
        deep: whether it has 16 bits a channel, as far as Pillow tells.
        several: whether it holds several pictures, of which the first is used.
        turned: whether its EXIF data turn or mirror it.
    """

    width: int
    height: int
    grey: bool
    alpha: bool
    deep: bool
    several: bool
    turned: bool


@dataclass(frozen=True)
class Decoder:
    """How image files become pixels.

    Args:
        resolution: crop to the centred square and resize it to so many pixels a side; None leaves the image alone.
        filter: of the resizing.
        channels: 1 for grey, 3 for RGB, whatever the image is; None leaves it as it is.
        background: colour behind what is transparent; None refuses images that are.
        max_pixels: larger images are refused before they are decoded.
    """

    resolution: int | None = None
    filter: Filter = "lanczos"
    channels: int | None = None
    background: str | None = None
    max_pixels: int = MOST_PIXELS

    def __call__(self, data: bytes, name: str) -> PixelArray:
        """The pixels of an image file.

        Args:
            name: of the file, for messages.

        Raises:
            Damaged: when it is no image of a format in `FORMATS`, damaged, or larger than `max_pixels`.
            UsageError: when it is transparent and there is no background.
        """
        return _guarded(lambda: self._pixels(data, name), name, data)

    def header(self, data: bytes, name: str, *, whole: bool = True) -> Header | None:
        """What an image file says of itself; None where `data` is its beginning alone and does not hold that.

        Raises:
            Damaged: as a call, as far as can be known without decoding.
        """
        try:
            return _guarded(lambda: self._header(data, name, whole=whole), name, data)
        except Damaged:
            if whole:
                raise
            return None

    @property
    def _coloured(self) -> bool:
        """Whether the background has a colour."""
        return self.background is not None and len(set(ImageColor.getrgb(self.background)[:3])) > 1

    def _open(self, data: bytes, name: str) -> Image.Image:
        # TGA files have no signature: other files could pass for one.
        opened = (*formats(), "TGA") if name.lower().endswith(".tga") else formats()
        if Image.MAX_IMAGE_PIXELS and self.max_pixels > Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = self.max_pixels
        image = Image.open(io.BytesIO(data), formats=opened)
        tile = [int(getattr(image, "tag_v2", {}).get(tag, 0)) for tag in TILE_SIZES]
        for width, height in (image.size, tile):
            if width * height > self.max_pixels:
                raise Damaged(
                    f"the image {name} has {width:,} x {height:,} pixels, more than the {self.max_pixels:,} of "
                    "--data-max-pixels"
                )
        return image

    def _header(self, data: bytes, name: str, *, whole: bool) -> Header | None:
        with self._open(data, name) as image:
            if image.format in NEED_ALL and not whole:
                return None
            # Pillow would decode a PNG to look for EXIF data behind the pixels.
            exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
            orientation = exif.get(ORIENTATION, 1)
            # Newer Pillows turn the size of a TIFF when they open it, older ones when they decode it.
            tags = getattr(image, "tag_v2", {})
            size = (tags[256], tags[257]) if image.format == "TIFF" else image.size
            width, height = size[::-1] if orientation in range(5, 9) else size
            _require_known_range(image, name)
            alpha = image.mode in ALPHA or "transparency" in image.info
            return Header(
                width, height, image.mode in GREY and not (alpha and self._coloured), alpha,
                image.mode in SIXTEEN_BITS, image.format != "MPO" and getattr(image, "n_frames", 1) > 1,
                orientation in range(2, 9),
            )  # fmt: skip

    def _pixels(self, data: bytes, name: str) -> PixelArray:
        with self._open(data, name) as opened:
            _require_known_range(opened, name)
            # In place: otherwise every image is copied.
            ImageOps.exif_transpose(opened, in_place=True)
            image = opened
            if image.mode in SIXTEEN_BITS:
                image = _eight_bits(image)
            if image.mode in ALPHA or "transparency" in image.info:
                image = self._opaque(image, name)
            channels = self.channels or (1 if image.mode in GREY else 3)
            mode = {1: "L", 3: "RGB"}[channels]
            converted: Any = image if image.mode == mode else image.convert(mode)
            if self.resolution is not None:
                converted = centred(converted, self.resolution, self.filter)
            pixels = np.asarray(converted)
            return pixels[:, :, None] if pixels.ndim == 2 else pixels

    def _opaque(self, image: Image.Image, name: str) -> Image.Image:
        """The image over the background; alpha is dropped alone where nothing is transparent."""
        grey, whole = image.mode in GREY, image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        if whole.getchannel("A").getextrema() != (255, 255):
            if self.background is None:
                raise UsageError(
                    f"the image {name} has transparent parts: choose the colour behind them by --data-background, such "
                    "as white, black or '#808080'"
                )
            grey = grey and not self._coloured
            colour = (*ImageColor.getrgb(self.background)[:3], 255)
            whole = Image.alpha_composite(Image.new("RGBA", whole.size, colour), whole)
        return whole.getchannel("R") if grey else whole.convert("RGB")


def centred(image: Any, resolution: int, resampling: Filter) -> Any:
    """The centred square of an image of Pillow, resized."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Cropped first: the filter must not see beyond the square.
    square = image.crop((left, top, left + side, top + side))
    return square.resize((resolution, resolution), Image.Resampling[resampling.upper()])


def decode(data: bytes, name: str, **options: Any) -> PixelArray:
    """The pixels of an image file by `Decoder(**options)`, (H, W, 1) where it is grey and (H, W, 3) where not.

    Raises:
        Damaged, UsageError: as `Decoder`.
    """
    return Decoder(**options)(data, name)


def _guarded(read: Callable[[], Any], name: str, data: bytes) -> Any:
    try:
        return read()
    except DistillkitError:
        raise
    except Image.DecompressionBombError as error:
        raise Damaged(f"the image {name} has more pixels than --data-max-pixels: {error}") from error
    except UnidentifiedImageError as error:
        raise Damaged(f"cannot read the image {name}: {_instead(data)}") from error
    except Exception as error:  # Pillow's many plugins raise many kinds for damaged files
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise Damaged(f"cannot read the image {name}: {reason}") from error


def _instead(data: bytes) -> str:
    """What a file is that is no image."""
    if not data:
        return "it is empty"
    if data.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; `git lfs pull` fetches the file"
    if data[:512].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "it is an HTML page, as a failed download leaves"
    return f"it is none of {', '.join(formats())}, or it is damaged"


def _require_known_range(image: Image.Image, name: str) -> None:
    """Refuse numbers whose black and white nobody knows.

    Raises:
        Damaged: for floating point, and integers of 32 bits.
    """
    # Older Pillows open PNG of 16 bits as integers of 32.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "floating-point numbers" if image.mode == "F" else "integers of 32 bits"
        raise Damaged(f"the image {name} holds {kind}, whose black and white are not known; convert it to 8 or 16 bits")


def _eight_bits(image: Image.Image) -> Image.Image:
    """0..65535 as 0..255."""
    deep = np.asarray(image).astype(np.uint32).clip(0, 65535)
    small = Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        small.putalpha(Image.fromarray(np.where(deep == transparent, 0, 255).astype(np.uint8)))
    return small


def is_image_name(name: str) -> bool:
    """Whether a file's name ends as images' do."""
    return PurePosixPath(name).suffix.lower() in suffixes()
