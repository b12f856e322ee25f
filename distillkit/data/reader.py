"""Pixels of numbered images in one shape, with others in the place of those that are damaged."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from distillkit.contracts.source import SourceJob
from distillkit.data.config import DataConfig
from distillkit.data.decoding import Damaged, PixelArray, Unfit
from distillkit.data.files import ImageFiles, open_images
from distillkit.data.survey import describe, require_one_size, survey, too_many
from distillkit.errors import UsageError


class ImageReader:
    """Decodes images; safe from several threads.

    A damaged image is replaced by the next readable one of its class, whoever meets it first and whenever: batches
    depend on the files alone.

    Args:
        config: whose `path` names the images.
        files: those images, where they are open already.
        want: shape (C, H, W) of what they are for, which decides between grey and RGB where it can.

    Attributes:
        shape: of an image, (C, H, W).
        summary: one line for people.

    Raises:
        UsageError: when there are none, or a choice has to be made, as between several sizes.
        DistillkitError: when they cannot be read.
    """

    def __init__(
        self, config: DataConfig, files: ImageFiles | None = None, want: tuple[int, ...] | None = None
    ) -> None:
        if config.path is None:
            raise UsageError("real images are needed: --data FILE.zip, --data FOLDER or --data hf:ORG/NAME")
        self.config = config
        self.files = files or open_files(config)
        if getattr(self.files, "of_arrays", False):
            raise UsageError(f"{config.path} holds latents, and images are needed here")
        found = survey(self.files, config)
        # Grey images show the same in RGB; the other way loses something, which has to be asked for.
        channels = 1 if config.grey else max(found.channels, want[0] if want and want[0] == 3 else 1)
        if config.resolution is None:
            width, height = require_one_size(self.files, found, want[1] if want and want[1] == want[2] else None)
        else:
            width = height = config.resolution
        self.shape = (channels, height, width)
        self.summary = describe(self.files, found, config, channels, config.path)
        self._decoder = config.decoder(channels)
        self._may_be_coloured = channels == 1 and not config.grey and found.looked_at < len(self.files)
        self._damaged, self._lock = dict(found.damaged), threading.Lock()
        self._unsaid: list[str] = []
        # What is wrong with all of them is found before a run.
        self.pixels(0)

    def __len__(self) -> int:
        return len(self.files)

    def pixels(self, number: int) -> PixelArray:
        """(H, W, C) uint8 of an image, or of what is read for it.

        Raises:
            Damaged: for more damaged images than `skip_damaged`.
            Unfit: when it is of another size than the others.
        """
        for candidate in self._candidates(number):
            if candidate in self._damaged:
                continue
            try:
                return self._decoded(candidate)
            except Damaged as error:
                self._note(candidate, str(error))
        raise Damaged(f"no image can be read in the place of {self.files.where(number)}")

    def said(self) -> list[str]:
        """What has been replaced or read again since it was last asked, one line each."""
        lines = self.files.said()
        if not self._unsaid:
            return lines
        with self._lock:
            replaced, self._unsaid = self._unsaid, []
        return lines + replaced

    def _candidates(self, number: int) -> Iterator[int]:
        """The image, then those after it of its class, round to it again."""
        yield number
        labels, count = self.files.labels, len(self.files)
        for step in range(1, count):
            other = (number + step) % count
            if labels is None or labels[other] == labels[number]:
                yield other

    def _note(self, number: int, reason: str) -> None:
        with self._lock:
            if number in self._damaged:
                return
            self._damaged[number] = reason
            if len(self._damaged) > self.config.skip_damaged:
                raise Damaged(too_many(self._damaged, self.config.skip_damaged))
            self._unsaid.append(
                f"{reason}; another is read in its place ({len(self._damaged):,} of {self.config.skip_damaged:,} "
                "of --skip-damaged)"
            )

    def _decoded(self, number: int) -> PixelArray:
        where = self.files.where(number)
        if self._may_be_coloured:
            self._require_grey(number, where)
        pixels = self._decoder(self.files.read(number), where)
        channels, height, width = self.shape
        if pixels.shape != (height, width, channels):
            raise Unfit(
                f"the image {where} is {pixels.shape[1]:,} x {pixels.shape[0]:,}, and those whose headers were read "
                f"are {width:,} x {height:,}: give --data-resolution {min(height, width)}, or remove it"
            )
        return pixels

    def _require_grey(self, number: int, where: str) -> None:
        if not self.files.header(number, self._decoder).grey:
            raise Unfit(
                f"the image {where} has colours, and those whose headers were read are grey: give --data-grey to "
                "convert it, or remove it"
            )


def open_files(config: DataConfig, job: SourceJob | None = None) -> ImageFiles:
    """The images that a configuration names.

    Args:
        job: whose progress shows the first reading of a stream.

    Raises:
        UsageError, DistillkitError: as `open_images`.
    """
    assert config.path is not None
    return open_images(
        config.path, image_column=config.image_column, label_column=config.label_column,
        caption_column=config.caption_column, latent_column=config.latent_column, job=job,
    )  # fmt: skip


def pixels_in_order(reader: ImageReader, batches: Iterable[range]) -> Iterator[Tensor]:
    """Pixels (B, C, H, W) uint8 of the images with these numbers, for evaluation.

    Raises:
        DistillkitError: as `ImageReader.pixels`.
    """
    for batch in batches:
        images: list[PixelArray] = [reader.pixels(number) for number in batch]
        yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
