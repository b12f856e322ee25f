"""Scoring a generator under a protocol: same seeds, same labels, same features, measured evaluations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.teacher import TeacherSpec
from distillkit.evaluation.frechet import FrechetDistance, frechet_distance
from distillkit.evaluation.moments import Moments
from distillkit.evaluation.protocol import Protocol

Generate = Callable[[Tensor, Condition, list[int]], Tensor]
"""(noise (B, C, H, W), condition, seeds) -> pixels (B, C, H, W) uint8."""


@dataclass(frozen=True)
class Score:
    """One figure. `nfe` is measured; images/s counts generation alone, on this machine, at this batch size."""

    distance: FrechetDistance
    nfe: float
    images_per_second: float
    protocol_id: str
    label: str
    count: int


@dataclass(frozen=True)
class Ruler:
    """A protocol with the extractor and reference that it names."""

    protocol: Protocol
    features: nn.Module
    reference: tuple[Tensor, Tensor]


def seeded_noise(seeds: list[int], shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) float32 standard normal, one CPU generator per seed: EDM's latents for the same seeds."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def balanced_labels(indices: range, num_classes: int) -> Condition:
    """Class labels index mod classes: exactly balanced, independent of batch size and processes."""
    return Condition(labels=torch.tensor(list(indices)) % num_classes) if num_classes else Condition()


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


@torch.inference_mode()
def score(
    generate: Generate,
    denoiser: Denoiser,
    spec: TeacherSpec,
    ruler: Ruler,
    device: torch.device,
    *,
    batch: int = 500,
    rank: int = 0,
    world: int = 1,
    advance: Callable[[int], None] = lambda n: None,
) -> Score:
    """Generate the protocol's samples and measure their distance to the reference.

    Processes share the batches; every process returns the same score.

    Args:
        generate: the generator under test.
        denoiser: its network, whose evaluations are counted.
    """
    samples = ruler.protocol.samples
    moments = Moments(ruler.protocol.extractor.dim)
    ruler.features.to(device)
    seconds, made = 0.0, 0
    starts = list(range(0, samples.count, batch))[rank::world]
    with count_evaluations(denoiser) as evaluations:
        for start in starts:
            indices = range(start, min(start + batch, samples.count))
            seeds = [samples.first_seed + index for index in indices]
            noise = seeded_noise(seeds, spec.shape).to(device)
            condition = balanced_labels(indices, spec.num_classes).to(device)
            began = time.perf_counter()
            pixels = generate(noise, condition, seeds)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            # The first batch pays for one-time set-up; it counts only if there is no other.
            if start != starts[0] or len(starts) == 1:
                seconds, made = seconds + time.perf_counter() - began, made + len(seeds)
            moments.add(ruler.features(pixels))
            advance(len(seeds))
        nfe = evaluations() / max(sum(min(batch, samples.count - s) for s in starts), 1)
    moments.finish()
    if world > 1:
        parts = gather_object([(moments.count, moments.mean, moments.scatter, made, seconds)])
        moments = Moments(ruler.protocol.extractor.dim)
        for count, mean, scatter, _, _ in parts:
            part = Moments(len(mean))
            part.count, part.mean, part.scatter = count, mean, scatter
            moments.merge(part)
        made, seconds = sum(p[3] for p in parts), max(p[4] for p in parts)
    distance = frechet_distance(moments.mean, moments.covariance, *ruler.reference)
    return Score(distance, nfe, made / max(seconds, 1e-9), ruler.protocol.id, ruler.protocol.label, samples.count)
