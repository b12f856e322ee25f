"""Real images as a source for training: drawn by (seed, step, sample index), decoded ahead by worker threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from distillkit.contracts.codec import Codec, Pixels
from distillkit.contracts.condition import Condition
from distillkit.contracts.conditioner import ClassLabels, Conditioner, Unconditional
from distillkit.contracts.random import Indices, SampleRNG
from distillkit.contracts.schedule import per_sample
from distillkit.contracts.source import Images
from distillkit.contracts.teacher import Teacher
from distillkit.data.captions import captions_of
from distillkit.data.classes import numbers_of
from distillkit.data.config import DataConfig
from distillkit.data.decoding import PixelArray
from distillkit.data.files import ImageFiles
from distillkit.data.given_text import Embeddings
from distillkit.data.labels import LABELS
from distillkit.data.latent_samples import encoded, latents_of
from distillkit.data.reader import ImageReader
from distillkit.data.stream_files import StreamedFiles
from distillkit.dtypes import DTYPES
from distillkit.errors import UsageError

KEPT_BYTES = 2**30
"""Decoded images are kept in memory where all of them need no more."""


class ImageStream:
    """Draws batches of real images; which ones depends on (seed, step, sample index) alone.

    While a step is trained, the same samples of the next step are decoded.

    Args:
        reader: the images.
        batch: samples of a step, of all processes: what a stream's order depends on.
        processes: that share the data.
        embeddings: text conditions that the data bring; made of captions by the conditioner if none.
        device: where batches go, as uint8; they become samples there.
        codec: makes samples of pixels.
        conditioner: makes conditions of labels, which are its keys; where none is given, one of the images' own
            classes, if they have labels.
        say: hears which damaged images are replaced.

    Attributes:
        shape: of an image, (C, H, W).
        kept_bytes: of memory that decoded images will take; 0 where they are too many to keep.
        summary: one line for people: how many images of which classes and sizes, and what was left out.

    Raises:
        UsageError: for balanced sampling without labels, or classes that are not the conditioner's.
    """

    def __init__(
        self,
        reader: ImageReader,
        device: torch.device,
        *,
        codec: Codec | None = None,
        conditioner: Conditioner | None = None,
        batch: int = 1,
        processes: int = 1,
        embeddings: Embeddings | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.reader, self.files, self.config, self.device = reader, reader.files, reader.config, device
        self.codec, self.conditioner = codec or Pixels(), conditioner or own_conditioner(reader.files)
        self.say = say
        files, config = self.files, self.config
        self._keys, note = numbers_of(files, self.conditioner)
        note = embeddings.summary if embeddings else note
        self.summary = "; ".join([reader.summary, *([note] if note else [])])
        self.embeddings = embeddings
        self.order = files.arrange(batch, processes) if isinstance(files, StreamedFiles) else None
        if self.order and config.sampling == "balanced":
            raise UsageError(
                "--data-sampling balanced is for images that are drawn at random, and a stream is read in order"
            )
        self.shape = reader.shape
        self._pool = ThreadPoolExecutor(config.workers, "decode") if config.workers else None
        self._ahead: dict[tuple[int, int, int, int], list[Future[list[PixelArray]]]] = {}
        channels, height, width = self.shape
        size = len(files) * channels * height * width
        self.kept_bytes = size if size <= KEPT_BYTES else 0
        # Pages of zeros cost nothing until they are written.
        self._kept = np.zeros((len(files), height, width, channels), np.uint8) if self.kept_bytes else None
        self._is_kept = np.zeros(len(files), bool)
        self._classes: list[Tensor] = []
        if config.sampling == "balanced":
            if files.labels is None:
                raise UsageError(
                    "balanced sampling needs labels, and these images have none; use --data-sampling as-is"
                )
            labels = torch.from_numpy(files.labels)
            self._classes = [found for k in range(files.num_classes) if len(found := (labels == k).nonzero().flatten())]

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, rng: SampleRNG, step: int, indices: Indices) -> Images:
        """Samples (B, ...) of the images on the device, and their conditions."""
        chosen = self.chosen(rng, step, indices)
        first, length = indices[0], len(indices)
        # What another seed draws is another batch.
        parts = self._ahead.pop((step, first, length, rng.seed), None) or self._start(chosen)
        if self._pool:
            self._ahead = {k: v for k, v in self._ahead.items() if k[0] > step or k[:2] > (step, first)}
            self._ahead[step + 1, first, length, rng.seed] = self._start(self.chosen(rng, step + 1, indices))
        pixels = torch.from_numpy(np.stack([image for part in parts for image in part.result()]))
        for line in self.reader.said():
            self.say(line)
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        pixels = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        if self.config.flip:
            mirrored = self.mirrored(rng, step, indices).to(self.device)
            pixels = torch.where(per_sample(mirrored, pixels), pixels.flip(3), pixels)
        if isinstance(self.codec, Pixels):
            sample = self.codec.encode(pixels).contiguous()
        else:
            dtype, numbers = DTYPES[self.config.latents_dtype], chosen.tolist()
            mean, deviation = encoded(self.codec, pixels, dtype, lambda place: self.files.where(numbers[place]))
            sample = latents_of(mean, deviation, rng, step, indices)
        return Images(sample, self.condition(chosen))

    def condition(self, chosen: Tensor) -> Condition:
        """The conditions of the images with these numbers (B,), on the device."""
        if self.embeddings:
            return self.embeddings(chosen.tolist()).to(self.device)
        keys = self._keys[chosen].to(self.device, non_blocking=True)
        return self.conditioner.encode(keys).to(self.device)

    def mirrored(self, rng: SampleRNG, step: int, indices: Indices) -> Tensor:
        """Which images of a batch (B,) are mirrored."""
        return (rng.uniform("images/flip", step, indices) < 0.5) & self.config.flip

    def chosen(self, rng: SampleRNG, step: int, indices: Indices) -> Tensor:
        """The numbers (B,) of a batch's images."""
        if self.order:
            return torch.from_numpy(self.order.numbers(rng, step, indices))
        if not self._classes:
            return rng.integers("images", step, indices, len(self))
        which = rng.integers("images/class", step, indices, len(self._classes))
        place = rng.uniform("images", step, indices)
        return torch.stack(
            [self._classes[k][int(u * len(self._classes[k]))] for k, u in zip(which, place, strict=True)]
        )

    def _start(self, chosen: Tensor) -> list[Future[list[PixelArray]]]:
        """Begin to decode, shared by the workers."""
        numbers = chosen.tolist()
        self.files.ahead(n for n in numbers if self._kept is None or not self._is_kept[n])
        if not self._pool:
            done: Future[list[PixelArray]] = Future()
            done.set_result(self._read(numbers))
            return [done]
        size = -(-len(numbers) // self.config.workers)
        return [self._pool.submit(self._read, numbers[k : k + size]) for k in range(0, len(numbers), size)]

    def _read(self, numbers: list[int]) -> list[PixelArray]:
        return [self._image(number) for number in numbers]

    def _image(self, number: int) -> PixelArray:
        if self._kept is not None and self._is_kept[number]:
            return self._kept[number]
        pixels = self.reader.pixels(number)
        if self._kept is not None:
            self._kept[number] = pixels
            self._is_kept[number] = True
        return pixels


def own_conditioner(files: ImageFiles) -> Conditioner:
    """The conditioner of the images' own classes; of nothing where they have no labels."""
    if files.labels is None:
        return Unconditional()
    return ClassLabels(classes=files.num_classes, class_names=files.class_names)


def open_stream(
    config: DataConfig,
    teacher: Teacher | None,
    device: torch.device,
    *,
    reader: ImageReader | None = None,
    batch: int = 1,
    processes: int = 1,
    embeddings: Embeddings | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> ImageStream:
    """The images of `config`, checked against what a teacher makes if one is given.

    Args:
        reader: of what `config.path` names, where it is open already.
        batch, processes, embeddings: as `ImageStream` takes them.
        say: hears which damaged images are replaced.

    Raises:
        UsageError: when no path is given, or size, channels or classes are not the teacher's.
        DistillkitError: when they cannot be read.
    """
    reader = reader or open_reader(config, teacher)
    if teacher is None:
        return ImageStream(reader, device, batch=batch, say=say)
    _check_fit(reader, str(config.path), teacher)
    require_captions(reader.files, str(config.path), teacher, embeddings)
    return ImageStream(
        reader,
        device,
        codec=teacher.codec,
        conditioner=teacher.conditioner,
        batch=batch,
        processes=processes,
        embeddings=embeddings,
        say=say,
    )


def open_reader(config: DataConfig, teacher: Teacher | None = None, files: ImageFiles | None = None) -> ImageReader:
    """The images of `config`, in the teacher's colours if one is given.

    Args:
        files: those images, where they are open already.

    Raises:
        UsageError, DistillkitError: as `ImageReader`.
    """
    images = teacher is not None and teacher.codec.content == "images"
    return ImageReader(
        config, files, want=teacher.codec.decoded_shape(teacher.spec.shape) if teacher is not None and images else None
    )


def _check_fit(reader: ImageReader, path: str, teacher: Teacher) -> None:
    """Refuse images that are not of the teacher's size.

    Raises:
        UsageError: naming both.
    """
    name = teacher.spec.name
    if teacher.codec.content != "images":
        raise UsageError(f"the teacher {name} makes {teacher.codec.content}; the images in {path} cannot be its data")
    shape = teacher.codec.decoded_shape(teacher.spec.shape)
    if reader.shape != shape:
        advice = []
        if reader.shape[1:] != shape[1:]:
            square = shape[1] == shape[2]
            advice.append(f"--data-resolution {shape[1]}" if square else f"images of {shape[2]} x {shape[1]}")
        if reader.shape[0] > shape[0] == 1:
            advice.append("--data-grey to convert them to grey")
        raise UsageError(
            f"the images in {path} are {reader.shape} (channels, height, width) and those of the teacher {name} are "
            f"{shape}. Give {' and '.join(advice) or 'others'}, or choose another teacher."
        )


def require_captions(files: ImageFiles, path: str, teacher: Teacher, embeddings: Embeddings | None = None) -> None:
    """Refuse data that lack the captions or classes that the teacher needs.

    Args:
        embeddings: that the data bring, which take the captions' place.

    Raises:
        UsageError: saying where they may be.
    """
    name = teacher.spec.name
    if teacher.conditioner.takes_text:
        if embeddings is None and captions_of(files, path) is None:
            raise UsageError(
                f"the images in {path} have no captions and the teacher {name} needs them: a .txt beside each image, a "
                "metadata.jsonl with file_name and text, or a table, parquet file or data set with a column of them"
            )
    elif teacher.conditioner.count and files.labels is None:
        why = f" ({'; '.join(files.notes)})" if files.notes else ""
        raise UsageError(
            f"the images in {path} have no labels{why} and the teacher {name} needs them "
            f"({teacher.conditioner.summary()}): add a {LABELS} or a folder for each class"
        )
