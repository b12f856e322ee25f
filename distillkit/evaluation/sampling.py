"""Samples that depend on their seeds alone: the same noise and labels for any batch size, device or process count."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.teacher import TeacherSpec
from distillkit.errors import DistillkitError
from distillkit.evaluation.protocol import SampleSpec

Generate = Callable[[Tensor, Condition, list[int]], Tensor]
"""(noise (B, C, H, W), condition, seeds) -> pixels (B, C, H, W) uint8."""


def seeded_noise(seeds: list[int], shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) float32 standard normal, one CPU generator per seed: EDM's latents for the same seeds."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def balanced_labels(indices: range, num_classes: int) -> Condition:
    """Class labels index mod classes: exactly balanced, independent of batch size and processes."""
    return Condition(labels=torch.tensor(list(indices)) % num_classes) if num_classes else Condition()


def seeded_labels(seeds: list[int], shape: tuple[int, ...], num_classes: int) -> Condition:
    """Class labels as EDM draws them: from each sample's generator, after its noise; only roughly balanced."""
    if not num_classes:
        return Condition()
    drawn = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        torch.randn(shape, generator=generator)
        drawn.append(torch.randint(num_classes, (), generator=generator))
    return Condition(labels=torch.stack(drawn))


@contextmanager
def count_evaluations(denoiser: Denoiser) -> Iterator[Callable[[], int]]:
    """Count the samples that pass through a denoiser; yields a function that tells the number so far."""
    seen = 0

    def count(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal seen
        seen += len(args[0])

    handle = denoiser.register_forward_pre_hook(count)
    try:
        yield lambda: seen
    finally:
        handle.remove()


@dataclass
class Tally:
    """What a stretch of sampling took."""

    samples: int = 0
    evaluations: int = 0
    timed_samples: int = 0
    seconds: float = 0.0

    @property
    def nfe(self) -> float:
        """Network evaluations of a sample, measured."""
        return self.evaluations / max(self.samples, 1)

    @property
    def images_per_second(self) -> float:
        return self.timed_samples / max(self.seconds, 1e-9)


@torch.inference_mode()
def sampled(
    generate: Generate,
    denoiser: Denoiser,
    spec: TeacherSpec,
    samples: SampleSpec,
    device: torch.device,
    batches: list[range],
    tally: Tally,
) -> Iterator[tuple[range, Tensor]]:
    """Generate the protocol's samples at the indices of `batches`; yields (indices, pixels uint8) and keeps `tally`.

    Raises:
        DistillkitError: when a generator makes something else than uint8 pixels.
    """
    before = tally.evaluations
    with count_evaluations(denoiser) as evaluations:
        for batch in batches:
            seeds = [samples.first_seed + index for index in batch]
            noise = seeded_noise(seeds, spec.shape).to(device)
            if samples.labels == "drawn after the noise":
                condition = seeded_labels(seeds, spec.shape, spec.num_classes).to(device)
            else:
                condition = balanced_labels(batch, spec.num_classes).to(device)
            began = time.perf_counter()
            pixels = generate(noise, condition, seeds)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            # The first batch pays for one-time set-up; it counts only if there is no other.
            if batch != batches[0] or len(batches) == 1:
                tally.seconds += time.perf_counter() - began
                tally.timed_samples += len(seeds)
            tally.samples += len(seeds)
            tally.evaluations = before + evaluations()
            yield batch, require_pixels(pixels)


def require_pixels(pixels: Tensor) -> Tensor:
    """Refuse anything but uint8 images: floats in [-1, 1] would give a plausible and wrong figure.

    Raises:
        DistillkitError: saying what came instead.
    """
    if pixels.dtype != torch.uint8 or pixels.dim() != 4:
        raise DistillkitError(
            f"images of type {pixels.dtype} and shape {tuple(pixels.shape)} came where pixels (B, C, H, W) uint8 are "
            "due; samples in [-1, 1] become pixels by Teacher.decode"
        )
    return pixels
