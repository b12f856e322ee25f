"""Real images as a source for training: drawn by (seed, step, sample index), decoded ahead by worker threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.random import Indices, SampleRNG
from distillkit.contracts.step import Images
from distillkit.contracts.teacher import TeacherSpec
from distillkit.data.decoding import Filter, Pixels, decode
from distillkit.data.files import ImageFiles, open_images
from distillkit.errors import DistillkitError, UsageError

KEPT_BYTES = 2**30
"""Decoded images are kept in memory where all of them need no more."""


class DataConfig(BaseModel):
    """Real images, where the method needs them."""

    model_config = ConfigDict(extra="forbid")

    path: str | None = Field(
        None, description="zip file, folder, parquet file or hf:ORG/NAME[:SPLIT]; digits has its own"
    )
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
        device: where batches go, as uint8; they become float32 in [-1, 1] there.
        labelled: whether to serve the labels, where there are some.

    Raises:
        DistillkitError: when the first image cannot be read.
        UsageError: for balanced sampling without labels.
    """

    def __init__(self, files: ImageFiles, config: DataConfig, device: torch.device, *, labelled: bool = True) -> None:
        self.files, self.config, self.device = files, config, device
        self.labels = torch.from_numpy(files.labels) if labelled and files.labels is not None else None
        first = self._decode(0, None)
        self.shape = (first.shape[2], first.shape[0], first.shape[1])
        self._pool = ThreadPoolExecutor(config.workers, "decode") if config.workers else None
        self._ahead: dict[tuple[int, int, int], list[Future[list[Pixels]]]] = {}
        keep = len(files) * first.size <= KEPT_BYTES
        # Pages of zeros cost nothing until they are written.
        self._kept = np.zeros((len(files), *first.shape), np.uint8) if keep else None
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
        """Images (B, C, H, W) in [-1, 1] on the device, and their labels."""
        chosen = self._chosen(rng, step, indices)
        key = (step, indices[0], len(indices))
        parts = self._ahead.pop(key, None) or self._start(chosen)
        if self._pool:
            self._ahead = {k: v for k, v in self._ahead.items() if k[0] > step or k[:2] > key[:2]}
            self._ahead[step + 1, key[1], key[2]] = self._start(self._chosen(rng, step + 1, indices))
        pixels = torch.from_numpy(np.stack([image for part in parts for image in part.result()]))
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        sample = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        if self.config.flip:
            mirrored = (rng.uniform("images/flip", step, indices) < 0.5).to(self.device)
            sample = torch.where(mirrored[:, None, None, None], sample.flip(3), sample)
        condition = Condition()
        if self.labels is not None:
            condition = Condition(labels=self.labels[chosen].to(self.device, non_blocking=True))
        return Images(sample.contiguous(), condition)

    def _chosen(self, rng: SampleRNG, step: int, indices: Indices) -> Tensor:
        if not self._classes:
            return rng.integers("images", step, indices, len(self))
        which = rng.integers("images/class", step, indices, len(self._classes))
        place = rng.uniform("images", step, indices)
        return torch.stack(
            [self._classes[k][int(u * len(self._classes[k]))] for k, u in zip(which, place, strict=True)]
        )

    def _start(self, chosen: Tensor) -> list[Future[list[Pixels]]]:
        """Begin to decode, shared by the workers."""
        numbers = chosen.tolist()
        if not self._pool:
            done: Future[list[Pixels]] = Future()
            done.set_result(self._read(numbers))
            return [done]
        size = -(-len(numbers) // self.config.workers)
        return [self._pool.submit(self._read, numbers[k : k + size]) for k in range(0, len(numbers), size)]

    def _read(self, numbers: list[int]) -> list[Pixels]:
        return [self._image(number) for number in numbers]

    def _image(self, number: int) -> Pixels:
        if self._kept is not None and self._is_kept[number]:
            return self._kept[number]
        pixels = self._decode(number, (*self.shape[1:], self.shape[0]))
        if self._kept is not None:
            self._kept[number] = pixels
            self._is_kept[number] = True
        return pixels

    def _decode(self, number: int, shape: tuple[int, ...] | None) -> Pixels:
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


def open_stream(
    config: DataConfig, spec: TeacherSpec | None, device: torch.device, *, labelled: bool = True
) -> ImageStream:
    """The images of `config`, checked against what a teacher makes if one is given.

    Raises:
        UsageError: when no path is given, or size, channels or classes are not the teacher's.
        DistillkitError: when they cannot be read.
    """
    if config.path is None:
        raise UsageError("real images are needed: --data FILE.zip, --data FOLDER or --data hf:ORG/NAME")
    stream = ImageStream(
        open_images(config.path), config, device, labelled=labelled and (spec is None or spec.num_classes > 0)
    )
    if spec is None:
        return stream
    if stream.shape != spec.shape:
        resize = f" Try --data-resolution {spec.shape[1]}." if spec.shape[1] == spec.shape[2] else ""
        raise UsageError(
            f"the images in {config.path} are {stream.shape} (channels, height, width) and the teacher's {spec.shape}."
            f"{resize}"
        )
    if spec.num_classes and stream.files.labels is None:
        raise UsageError(f"the teacher has {spec.num_classes} classes and the images in {config.path} have no labels")
    if spec.num_classes and stream.files.num_classes > spec.num_classes:
        raise UsageError(
            f"the images in {config.path} have labels up to {stream.files.num_classes - 1} and the teacher "
            f"{spec.num_classes} classes"
        )
    return stream


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}, {'grey' if shape[2] == 1 else 'RGB'}"
