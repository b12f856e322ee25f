"""Latents of images: encoded once into a store that runs share, or when they are drawn; both are rounded alike."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillkit.contracts.codec import Codec, Pixels, Points
from distillkit.contracts.random import Indices, SampleRNG
from distillkit.contracts.source import Images, SourceJob
from distillkit.data.files import size_text
from distillkit.data.identity import described_part
from distillkit.data.latent_samples import encoded, latents_of
from distillkit.data.shards import Shards, identity_hash
from distillkit.data.stream import ImageStream
from distillkit.dtypes import DTYPES
from distillkit.errors import DistillkitError
from distillkit.files import cache_folder, existing_parent, remove_leftovers, slug

SHARD_BYTES, MOST_ROWS = 2**25, 1024
ENCODED_AT_ONCE = 16
SHARE = 0.5
"""Of what is free on the disk, at most, where nobody has asked for a store."""


PLAIN, MIRRORED = "plain ", "mirrored "
MEAN, DEVIATION = "mean", "deviation"
"""Names of tensors: "plain mean"."""


IDENTITY = frozenset({"images", "prepared", "codec", "values", "dtype", "mirrored", "rows"})
"""What a store is named by the values of."""


def has_latents(codec: Codec) -> bool:
    """Whether encoding costs something: samples are no pixels or points."""
    return not isinstance(codec, Pixels | Points)


@dataclass(frozen=True)
class LatentPlan:
    """Where latents are to come from.

    Args:
        stored: in a store, instead of being encoded when images are drawn.
        summary: one line for people.
        disk_bytes: that are still to be written.
    """

    stored: bool
    summary: str
    disk_bytes: int = 0


class LatentStore:
    """Samples of images in shards, in their order; its folder is named by all that they depend on.

    They are what `Codec.distribution` gives, scaled: the mean, and the deviation where there is one, from which samples
    are drawn anew each time. Mirrored images have their own, where they are drawn: an autoencoder does not commute with
    mirrors.

    Args:
        stream: whose images they are, with the codec.
        root: where stores are kept; the cache folder by default.
    """

    def __init__(self, stream: ImageStream, root: Path | None = None) -> None:
        self.reader, self.codec, config = stream.reader, stream.codec, stream.config
        self.dtype, self.flip, self.count = DTYPES[config.latents_dtype], config.flip, len(stream)
        self.shape = self.codec.encoded_shape(stream.shape)
        drawn = type(self.codec).distribution is not Codec.distribution
        self.row_bytes = math.prod(self.shape) * self.dtype.itemsize * (2 if self.flip else 1) * (2 if drawn else 1)
        self.rows = max(1, min(MOST_ROWS, SHARD_BYTES // self.row_bytes))
        identity = {
            "images": stream.files.fingerprint,
            "prepared": [list(stream.shape), config.resolution, config.filter, config.background, config.grey],
            "codec": described_part("codecs", self.codec.hashed()),
            "values": "mean and deviation, scaled",
            "dtype": config.latents_dtype,
            "mirrored": self.flip,
            "rows": self.rows,
        }
        name = slug(Path(str(config.path)).stem)[:40]
        self.shards = Shards((root or cache_folder() / "latents") / f"{name}-{identity_hash(identity)}", identity)

    @property
    def folder(self) -> Path:
        return self.shards.folder

    def missing(self) -> int:
        """Images that are still to be encoded."""
        starts = range(0, self.count, self.rows)
        return sum(min(self.rows, self.count - k) for k in starts if not self.shards.is_whole(k // self.rows))

    def make(self, rank: int, world: int, advance: Callable[[int], None]) -> None:
        """Make the missing shards whose number is this process'; complete ones stay whatever happens.

        Raises:
            DistillkitError: when they cannot be written, an image cannot be read, or a latent is not finite.
        """
        remove_leftovers(self.folder)
        self.shards.fill(range(rank, -(-self.count // self.rows), world), self._shard, advance)

    def _shard(self, number: int) -> dict[str, Tensor]:
        return self._encoded(range(number * self.rows, min((number + 1) * self.rows, self.count)))

    def _encoded(self, numbers: range) -> dict[str, Tensor]:
        made: dict[str, list[Tensor]] = {}
        for start in range(0, len(numbers), ENCODED_AT_ONCE):
            some = numbers[start : start + ENCODED_AT_ONCE]
            pixels = torch.from_numpy(np.stack([self.reader.pixels(n) for n in some])).permute(0, 3, 1, 2)
            for prefix in (PLAIN, MIRRORED) if self.flip else (PLAIN,):
                images = (pixels.flip(3) if prefix == MIRRORED else pixels).contiguous()
                parts = encoded(self.codec, images, self.dtype, self._where(some))
                for name, part in zip((MEAN, DEVIATION), parts, strict=True):
                    if part is not None:
                        made.setdefault(prefix + name, []).append(part.cpu())
        return {name: torch.cat(parts).contiguous() for name, parts in made.items()}

    def _where(self, numbers: Sequence[int]) -> Callable[[int], str]:
        return lambda place: self.reader.files.where(numbers[place])


class LatentStream:
    """Batches as those of an `ImageStream`, from the latents that are stored of its images.

    Args:
        stream: says which images are drawn, and makes their conditions.
        store: complete.
    """

    def __init__(self, stream: ImageStream, store: LatentStore) -> None:
        self.stream, self.store = stream, store
        self._mapped: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.stream)

    def batch(self, rng: SampleRNG, step: int, indices: Indices) -> Images:
        """Samples (B, ...) of the images on the device, and their conditions."""
        stream = self.stream
        chosen, mirrored = stream.chosen(rng, step, indices), stream.mirrored(rng, step, indices)
        rows = [self._row(n, flip) for n, flip in zip(chosen.tolist(), mirrored.tolist(), strict=True)]
        mean, deviation = (self._stacked([row.get(name) for row in rows]) for name in (MEAN, DEVIATION))
        assert mean is not None
        return Images(latents_of(mean, deviation, rng, step, indices), stream.condition(chosen))

    def _row(self, number: int, mirrored: bool) -> dict[str, Tensor]:
        """Mean and deviation of an image."""
        shard, row = divmod(number, self.store.rows)
        if (found := self._mapped.get(shard)) is None:
            found = self._mapped[shard] = self.store.shards.mapped(shard)
        prefix = MIRRORED if mirrored else PLAIN
        return {name.removeprefix(prefix): value[row] for name, value in found.items() if name.startswith(prefix)}

    def _stacked(self, values: list[Tensor | None]) -> Tensor | None:
        there = [value for value in values if value is not None]
        return torch.stack(there).to(self.stream.device, non_blocking=True) if there else None


def plan_latents(stream: ImageStream, draws: int | None = None) -> LatentPlan:
    """Where the latents of images are to come from: by their size, what is free on the disk, and how many are drawn.

    Args:
        draws: of images that are to come.

    Raises:
        DistillkitError: for a store that was asked for and that the disk cannot hold.
    """
    asked, store = stream.config.latents, LatentStore(stream)
    missing = store.missing()
    needed, free = missing * store.row_bytes, shutil.disk_usage(existing_parent(store.folder)).free
    reason = ""
    if asked == "auto" and missing and stream.order:
        reason = " (a stream is not held; --data-latents store keeps latents of all of it)"
    elif asked == "auto" and missing:
        above = existing_parent(store.folder)
        if not (above.is_dir() and os.access(above, os.W_OK)):
            reason = f" ({store.folder} cannot be written)"
        elif draws is not None and draws < missing:
            reason = f" (this run draws {draws:,} images)"
        elif needed > SHARE * free:
            reason = f" (a store would take {size_text(needed)} of the {size_text(free)} that are free)"
    if asked == "on-the-fly" or reason:
        return LatentPlan(False, f"latents are encoded whenever images are drawn{reason}")
    if needed > free:
        raise DistillkitError(
            f"latents need {size_text(needed)} in {store.folder} and {size_text(free)} are free; set "
            "DISTILLKIT_CACHE to a larger disk, or leave them out by --data-latents on-the-fly"
        )
    to_make = f", {missing:,} to make" if missing else ""
    kept = (
        f"latents (means and deviations, from which samples are drawn) in {stream.config.latents_dtype}, memory-mapped "
        f"from {store.folder}{to_make}"
    )
    return LatentPlan(True, kept, needed)


def with_latents(stream: ImageStream, job: SourceJob, draws: int | None = None) -> LatentStream | ImageStream:
    """The stream, its latents stored where that is planned; what is missing is made first, shared among the processes
    by number. The autoencoder's memory is free afterwards.

    Raises:
        DistillkitError: as `LatentStore.make`.
        Interrupted: after a signal; complete shards stay.
    """
    plan = plan_latents(stream, draws)
    job.say(plan.summary)
    if not plan.stored:
        return stream
    store = LatentStore(stream)
    store.shards.share(
        job, "encoding images", "images", store.missing(), lambda advance: store.make(job.rank, job.world, advance),
        kept="complete latents",
    )  # fmt: skip
    for line in stream.reader.said():
        job.say(line)
    store.shards.refresh()
    store.shards.opened()
    if left := store.missing():
        raise DistillkitError(
            f"{left:,} of {store.count:,} latents are missing in {store.folder}; all processes must share this folder: "
            "set DISTILLKIT_CACHE to one that they all see"
        )
    store.codec.release()
    return LatentStream(stream, store)
