"""Noise, conditions and tallies of an evaluation: the same for any batch size, device or number of processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distillkit.contracts.codec import Content
from distillkit.contracts.conditioner import Conditioner
from distillkit.errors import DistillkitError
from distillkit.evaluation.protocol import SampleSpec


def seeded_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) float32 standard normal, one CPU generator per seed: EDM's latents for the same seeds."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def sobol_noise(numbers: range, shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) float32: evenly spread normal vectors, the Sobol points of these numbers through the quantile
    function. The sequence's first point, which is zero, is left out."""
    engine = torch.quasirandom.SobolEngine(math.prod(shape))
    engine.fast_forward(numbers.start + 1)
    points = engine.draw(len(numbers), dtype=torch.float64)
    return torch.special.ndtri(points).float().reshape(len(numbers), *shape)


def keys_after_noise(seeds: Sequence[int], shape: tuple[int, ...], count: int) -> Tensor:
    """Keys (B,) as EDM draws class labels: from each sample's generator, after its noise; only roughly balanced."""
    drawn = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        torch.randn(shape, generator=generator)
        drawn.append(torch.randint(max(count, 1), (), generator=generator))
    return torch.stack(drawn)


def inputs(
    spec: SampleSpec, indices: range, shape: tuple[int, ...], conditioner: Conditioner, prompts: Tensor | None = None
) -> tuple[Tensor, Tensor, list[int]]:
    """Noise (B, *shape) and keys (B,), both on the CPU, and seeds of a protocol's samples at `indices`.

    Args:
        prompts: the keys of the protocol's own prompts, which go round in turn.
    """
    numbers = range(spec.first_seed + indices.start, spec.first_seed + indices.stop)
    noise = sobol_noise(numbers, shape) if spec.rng == "sobol" else seeded_noise(numbers, shape)
    if prompts is not None:
        keys = prompts[torch.tensor(list(indices)) % len(prompts)]
    elif spec.labels == "drawn after the noise":
        keys = keys_after_noise(numbers, shape, conditioner.count)
    else:
        keys = conditioner.in_turn(indices)
    return noise, keys, list(numbers)


def chooses_kernels(device: torch.device) -> bool:
    """Whether the first pass of a size takes many times as long as those after it, as kernels are loaded and chosen."""
    return device.type == "cuda"


@dataclass
class Tally:
    """What a stretch of sampling took."""

    samples: int = 0
    evaluations: int = 0
    timed_samples: int = 0
    seconds: float = 0.0

    def add(self, samples: int, seconds: float, *, timed: bool) -> None:
        """Count a batch; `timed` is false for one whose time says nothing of the others."""
        self.samples += samples
        if timed:
            self.seconds += seconds
            self.timed_samples += samples

    @property
    def nfe(self) -> float:
        """Network evaluations of a sample, measured."""
        return self.evaluations / max(self.samples, 1)

    @property
    def images_per_second(self) -> float:
        return self.timed_samples / max(self.seconds, 1e-9)


def require_content(decoded: Tensor, content: Content) -> Tensor:
    """Refuse what is not decoded: floats in [-1, 1] in the place of pixels would give a plausible and wrong figure.

    Raises:
        DistillkitError: naming what came instead.
    """
    wanted = {
        "images": (torch.uint8, 4, "images (B, C, H, W) uint8"),
        "video": (torch.uint8, 5, "video (B, C, T, H, W) uint8"),
        "points": (torch.float32, 2, "points (B, D) float32"),
    }
    dtype, rank, name = wanted[content]
    if decoded.dtype != dtype or decoded.dim() != rank:
        raise DistillkitError(
            f"a generator gave {decoded.dtype} of shape {tuple(decoded.shape)} where {name} are measured; samples are "
            "decoded by their codec"
        )
    return decoded
