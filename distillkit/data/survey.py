"""What images are, by their headers: sizes, colours, transparency, damage. Before a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from distillkit.data.config import DataConfig
from distillkit.data.decoding import Damaged
from distillkit.data.files import ImageFiles, counted
from distillkit.data.labels import shown
from distillkit.errors import UsageError
from distillkit.text import redacted

MOST_HEADERS = 100_000
"""Of more images, so many are looked at, evenly spread."""

MOST_OPAQUE = 64
"""So many images that could be transparent are decoded to see whether they are."""

IN_ONE_GO = 256

NAMED_CLASSES = 6


@dataclass
class Survey:
    """What the headers of images say.

    Args:
        looked_at: number of images whose headers were read.
        sizes: (width, height) upright -> how many, and the number of the first.
        coloured: number of an image with colours, or None.
        alpha: numbers of images that may be transparent.
        grey, deep, several, turned: how many are grey, of 16 bits, of several pictures, turned by EXIF data.
        damaged: number -> why it cannot be read.
    """

    looked_at: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    first: dict[tuple[int, int], int] = field(default_factory=dict)
    coloured: int | None = None
    alpha: list[int] = field(default_factory=list)
    grey: int = 0
    deep: int = 0
    several: int = 0
    turned: int = 0
    damaged: dict[int, str] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """1 where all images are grey, else 3."""
        return 1 if self.coloured is None else 3


def survey(files: ImageFiles, config: DataConfig) -> Survey:
    """Read the headers of all images, or of `MOST_HEADERS` of them, or of as many as their files allow.

    Raises:
        Damaged: when more images than `config.skip_damaged` cannot be read.
        UsageError: when images are transparent and there is no background, or all are damaged.
    """
    count, found = len(files), Survey()
    most = files.looked_at or MOST_HEADERS
    numbers = range(count) if count <= most else [k * count // most for k in range(most)]
    parts = [numbers[k : k + IN_ONE_GO] for k in range(0, len(numbers), IN_ONE_GO)]
    decoder = config.decoder()

    def look(part: range | list[int]) -> Survey:
        seen = Survey()
        for number in part:
            try:
                header = files.header(number, decoder)
            except Damaged as error:
                seen.damaged[number] = str(error)
                continue
            size = (header.width, header.height)
            seen.sizes[size] += 1
            seen.first.setdefault(size, number)
            seen.grey += header.grey
            seen.deep += header.deep
            seen.several += header.several
            seen.turned += header.turned
            if not header.grey and seen.coloured is None:
                seen.coloured = number
            if header.alpha:
                seen.alpha.append(number)
        return seen

    with ThreadPoolExecutor(8, "headers") as pool:
        for part, seen in zip(parts, _in_order(pool, look, parts), strict=True):
            _add(found, seen, len(part))
            if len(found.damaged) > config.skip_damaged:
                pool.shutdown(wait=False, cancel_futures=True)
                raise Damaged(too_many(found.damaged, config.skip_damaged))
    if len(found.damaged) == found.looked_at:
        raise UsageError(f"none of the images can be read: {next(iter(found.damaged.values()))}")
    _require_opaque(files, config, found)
    return found


def _in_order(pool: ThreadPoolExecutor, look: object, parts: list[range | list[int]]) -> Iterator[Survey]:
    return pool.map(look, parts)  # type: ignore[arg-type]


def _add(found: Survey, seen: Survey, looked_at: int) -> None:
    found.looked_at += looked_at
    found.sizes.update(seen.sizes)
    for size, number in seen.first.items():
        found.first.setdefault(size, number)
    found.coloured = seen.coloured if found.coloured is None else found.coloured
    found.alpha += seen.alpha
    found.grey += seen.grey
    found.deep += seen.deep
    found.several += seen.several
    found.turned += seen.turned
    found.damaged |= seen.damaged


def too_many(damaged: dict[int, str], most: int) -> str:
    """The message for more damaged images than may be skipped."""
    lines = list(damaged.values())
    more = f"\n{len(lines) - 3:,} more" if len(lines) > 3 else ""
    said = "\n".join(lines[:3]) + more
    if most:
        return f"{said}\nThese are more damaged images than the {most:,} of --skip-damaged."
    return f"{said}\nRemove or repair what is damaged, or give --skip-damaged N, so many of which others are read for."


def _require_opaque(files: ImageFiles, config: DataConfig, found: Survey) -> None:
    """Refuse transparent images without a background, as far as decoding some of them shows them.

    Raises:
        UsageError: naming one.
    """
    if config.background is not None or not found.alpha:
        return
    decoder, step = config.decoder(), -(-len(found.alpha) // MOST_OPAQUE)
    for number in found.alpha[::step]:
        try:
            decoder(files.read(number), files.where(number))
        except Damaged as error:
            found.damaged[number] = str(error)
            if len(found.damaged) > config.skip_damaged:
                raise Damaged(too_many(found.damaged, config.skip_damaged)) from error


def require_one_size(files: ImageFiles, found: Survey, advised: int | None = None) -> tuple[int, int]:
    """The (width, height) of all images.

    Args:
        advised: resolution to propose.

    Raises:
        UsageError: when they have several.
    """
    if len(found.sizes) == 1:
        return next(iter(found.sizes))
    examples = ", ".join(
        f"{counted(count, 'is', 'are')} {_size(size)} (such as {files.where(found.first[size])})"
        for size, count in found.sizes.most_common(3)
    )
    raise UsageError(
        f"the images have {len(found.sizes):,} sizes: {examples}. Give --data-resolution "
        f"{advised or min(min(size) for size in found.sizes)} to crop each to its centred square and resize it"
    )


def describe(files: ImageFiles, found: Survey, config: DataConfig, channels: int, path: str) -> str:
    """One line for people: how many images of which classes and sizes, and what was left out and why."""
    parts = [f"{counted(len(files), 'image')}{_classes(files)}, {_sizes(found)} {'grey' if channels == 1 else 'RGB'}"]
    if config.resolution is not None:
        parts[0] += f", cropped and resized to {config.resolution} x {config.resolution}"
        small = sum(count for size, count in found.sizes.items() if min(size) < config.resolution)
        parts += [f"{counted(small, 'image is', 'images are')} smaller and enlarged"] if small else []
    parts[0] += f", from {redacted(path)}"
    looked_at, coloured = found.looked_at - len(found.damaged), found.looked_at - len(found.damaged) - found.grey
    said = [
        (channels == 3 and found.grey, f"{found.grey:,} of them grey, repeated in three channels"),
        (channels == 1 and coloured > 0, f"{coloured:,} of them with colours, converted to grey"),
        (found.deep, f"{found.deep:,} of them of 16 bits, 0..65535 scaled to 0..255"),
        (found.turned, f"{found.turned:,} of them turned as their EXIF data say"),
        (found.several, f"of {found.several:,} with several pictures the first is used"),
        (found.alpha and config.background, f"{len(found.alpha):,} with transparency, over {config.background}"),
        (found.alpha and not config.background, f"{len(found.alpha):,} with an opaque alpha channel, dropped"),
        (found.looked_at < len(files), f"by the headers of {looked_at:,} of them"),
        (found.damaged, f"{len(found.damaged):,} damaged, replaced: {'; '.join(list(found.damaged.values())[:3])}"),
    ]
    parts += [text for holds, text in said if holds]
    parts += files.notes
    parts += [f"left out: {', '.join(files.left_out)}"] if files.left_out else []
    return "; ".join(parts)


def _classes(files: ImageFiles) -> str:
    """' in 3 classes (ant 4, cat 4, dog 4)', shortened for many."""
    if files.labels is None:
        return ""
    counts = np.bincount(files.labels, minlength=files.num_classes)
    names = [shown(name, 40) for name in files.class_names] or [str(k) for k in range(len(counts))]
    each = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts[:NAMED_CLASSES].tolist(), strict=False))
    if len(counts) > NAMED_CLASSES:
        filled = counts[counts > 0]
        each += f", ... {names[-1]} {counts[-1]:,}; {int(filled.min()):,} to {int(filled.max()):,} each"
    empty = int((counts == 0).sum())
    without = f", {empty:,} without images" if empty else ""
    return f" in {counted(len(counts), 'class', 'classes')} ({each}{without})"


def _sizes(found: Survey) -> str:
    if len(found.sizes) == 1:
        return _size(next(iter(found.sizes)))
    low, high = min(found.sizes, key=lambda s: s[0] * s[1]), max(found.sizes, key=lambda s: s[0] * s[1])
    return f"{_size(low)} to {_size(high)}"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]:,} x {size[1]:,}"
