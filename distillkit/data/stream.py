"""Real images as a source for training: drawn by (seed, step, sample index), decoded ahead by worker threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distillkit.contracts.codec import Codec, Pixels
from distillkit.contracts.conditioner import ClassLabels, Conditioner, Unconditional
from distillkit.contracts.random import Indices, SampleRNG
from distillkit.contracts.schedule import per_sample
from distillkit.contracts.source import Images, SourceConfig
from distillkit.contracts.teacher import Teacher
from distillkit.data.decoding import Filter, PixelArray, decode
from distillkit.data.files import LABELS, ImageFiles, open_images
from distillkit.errors import DistillkitError, UsageError

KEPT_BYTES = 2**30
"""Decoded images are kept in memory where all of them need no more."""


class DataConfig(SourceConfig):
    """Real images, where the method needs them."""

    path: str | None = Field(
        None, description="zip file, folder, parquet file or hf:ORG/NAME[:SPLIT]; what comes with the teacher if none",
        json_schema_extra={"flag": "data"},
    )  # fmt: skip
    resolution: int | None = Field(
        None, ge=1, le=4096, description="crop to the centred square and resize to this; images are left alone if none"
    )
    filter: Filter = Field("lanczos", description="resampling filter, where a resolution is given")
    sampling: Literal["as-is", "balanced"] = Field(
        "as-is", description="every image alike (as-is) or every class alike (balanced)"
    )
    flip: bool = Field(False, description="mirror every other image, drawn at random")
    workers: int = Field(1, ge=0, le=64, description="threads that decode ahead, more for large images; 0: none")


class ImageStream:
    """Draws batches of real images; which ones depends on (seed, step, sample index) alone.

    While a step is trained, the same samples of the next step are decoded.

    Args:
        files: the images.
        config: resizing, sampling, workers.
        device: where batches go, as uint8; they become samples there.
        codec: makes samples of pixels.
        conditioner: makes conditions of labels, which are its keys; where none is given, one of the images' own
            classes, if they have labels.

    Attributes:
        shape: of an image, (C, H, W).
        kept_bytes: of memory that decoded images will take; 0 where they are too many to keep.

    Raises:
        DistillkitError: when the first image cannot be read.
        UsageError: for balanced sampling without labels.
    """

    def __init__(
        self,
        files: ImageFiles,
        config: DataConfig,
        device: torch.device,
        *,
        codec: Codec | None = None,
        conditioner: Conditioner | None = None,
    ) -> None:
        self.files, self.config, self.device = files, config, device
        self.codec, self.conditioner = codec or Pixels(), conditioner or own_conditioner(files)
        self._keys = torch.zeros(len(files), dtype=torch.int64)
        if files.labels is not None and self.conditioner.count:
            self._keys = torch.from_numpy(files.labels)
        first = self._decode(0, None)
        self.shape = (first.shape[2], first.shape[0], first.shape[1])
        self._pool = ThreadPoolExecutor(config.workers, "decode") if config.workers else None
        self._ahead: dict[tuple[int, int, int], list[Future[list[PixelArray]]]] = {}
        size = len(files) * first.size
        self.kept_bytes = size if size <= KEPT_BYTES else 0
        # Pages of zeros cost nothing until they are written.
        self._kept = np.zeros((len(files), *first.shape), np.uint8) if self.kept_bytes else None
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
        chosen = self._chosen(rng, step, indices)
        key = (step, indices[0], len(indices))
        parts = self._ahead.pop(key, None) or self._start(chosen)
        if self._pool:
            self._ahead = {k: v for k, v in self._ahead.items() if k[0] > step or k[:2] > key[:2]}
            self._ahead[step + 1, key[1], key[2]] = self._start(self._chosen(rng, step + 1, indices))
        pixels = torch.from_numpy(np.stack([image for part in parts for image in part.result()]))
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        pixels = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        if self.config.flip:
            mirrored = (rng.uniform("images/flip", step, indices) < 0.5).to(self.device)
            pixels = torch.where(per_sample(mirrored, pixels), pixels.flip(3), pixels)
        with torch.no_grad():
            sample = self.codec.encode(pixels).contiguous()
        keys = self._keys[chosen].to(self.device, non_blocking=True)
        return Images(sample, self.conditioner.encode(keys).to(self.device))

    def _chosen(self, rng: SampleRNG, step: int, indices: Indices) -> Tensor:
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
        pixels = self._decode(number, (*self.shape[1:], self.shape[0]))
        if self._kept is not None:
            self._kept[number] = pixels
            self._is_kept[number] = True
        return pixels

    def _decode(self, number: int, shape: tuple[int, ...] | None) -> PixelArray:
        config, name = self.config, self.files.names[number]
        pixels = decode(self.files.read(number), name, resolution=config.resolution, filter_name=config.filter)
        if shape is not None and pixels.shape != shape:
            if pixels.shape[2] == 1 and pixels.shape[:2] == shape[:2]:
                return np.repeat(pixels, shape[2], axis=2)
            raise DistillkitError(
                f"{name} is {_size(pixels.shape)} and the first image is {_size(shape)}; images must be of one size "
                "and kind, or be resized by --data-resolution"
            )
        return pixels


def pixels_in_order(
    files: ImageFiles, batches: Iterable[range], *, resolution: int | None = None, filter_name: Filter = "lanczos"
) -> Iterator[Tensor]:
    """Pixels (B, C, H, W) uint8 of the images with these numbers, for evaluation.

    Raises:
        DistillkitError: when an image cannot be read, or they are of several sizes.
    """
    shape: tuple[int, ...] | None = None
    for batch in batches:
        images = []
        for number in batch:
            name = files.names[number]
            pixels = decode(files.read(number), name, resolution=resolution, filter_name=filter_name)
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise DistillkitError(
                    f"{name} is {_size(pixels.shape)} and the first image is {_size(shape)}; images must be of one "
                    "size and kind"
                )
            images.append(pixels)
        yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def own_conditioner(files: ImageFiles) -> Conditioner:
    """The conditioner of the images' own classes; of nothing where they have no labels."""
    if files.labels is None:
        return Unconditional()
    return ClassLabels(classes=files.num_classes, class_names=files.class_names)


def open_stream(
    config: DataConfig, teacher: Teacher | None, device: torch.device, *, files: ImageFiles | None = None
) -> ImageStream:
    """The images of `config`, checked against what a teacher makes if one is given.

    Args:
        files: what `config.path` names, where it is open already.

    Raises:
        UsageError: when no path is given, or size, channels or classes are not the teacher's.
        DistillkitError: when they cannot be read.
    """
    if config.path is None:
        raise UsageError("real images are needed: --data FILE.zip, --data FOLDER or --data hf:ORG/NAME")
    files = files or open_images(config.path)
    if teacher is None:
        return ImageStream(files, config, device)
    stream = ImageStream(files, config, device, codec=teacher.codec, conditioner=teacher.conditioner)
    _check_fit(stream, config.path, teacher)
    return stream


def _check_fit(stream: ImageStream, path: str, teacher: Teacher) -> None:
    """Refuse images that are not of the teacher's size or classes.

    Raises:
        UsageError: naming both.
    """
    name, labels, classes = teacher.spec.name, stream.files.labels, teacher.conditioner.count
    if teacher.codec.content != "images":
        raise UsageError(f"the teacher {name} makes {teacher.codec.content}; the images in {path} cannot be its data")
    shape = teacher.codec.decoded_shape(teacher.spec.shape)
    if stream.shape != shape:
        resize = f" Try --data-resolution {shape[1]}." if shape[1] == shape[2] else ""
        raise UsageError(
            f"the images in {path} are {stream.shape} (channels, height, width) and the teacher's {shape}.{resize}"
        )
    if classes and labels is None:
        raise UsageError(
            f"the images in {path} have no labels and the teacher {name} needs them ({teacher.conditioner.summary()}): "
            f"add a {LABELS} or a folder for each class"
        )
    if classes and stream.files.num_classes > classes:
        raise UsageError(
            f"the images in {path} have labels up to {stream.files.num_classes - 1} and the teacher "
            f"{teacher.conditioner.summary()}"
        )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}, {'grey' if shape[2] == 1 else 'RGB'}"
