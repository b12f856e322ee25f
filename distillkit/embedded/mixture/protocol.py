"""How far a generator of points is from the embedded mixture: computed on a grid of cells, not estimated from features.

The truth's mass in every cell is known in closed form. The generator's is found by pushing evenly spread noise (a Sobol
sequence through the normal quantile) through it: a quadrature, the same for every generator.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.teacher import TeacherSpec
from distillkit.evaluation.protocol import EstimatorSpec, ExtractorSpec, Protocol, ReferenceSpec, SampleSpec
from distillkit.evaluation.sampling import Generate, count_evaluations
from distillkit.evaluation.score import Score
from distillkit.embedded.mixture.teacher import MODES, RADIUS, SPREAD, means

POINTS, CELLS, HALF = 65_536, 64, 1.2
"""Noise vectors; cells along each side; half the side of the square, outside of which is one more cell."""


@dataclass(frozen=True)
class Divergence:
    """A generator's distance to the mixture.

    Args:
        kl: D_KL(generator || mixture) over the cells, in nats.
        between: mass further than four standard deviations from every mode; of the mixture's own, 0.03 %.
        covered: modes that get at least half of their share within four standard deviations.
    """

    kl: float
    between: float
    covered: int


@dataclass(frozen=True)
class DensityRuler:
    """Measures generators of points as `Ruler` measures generators of images."""

    protocol: Protocol

    def score(
        self, generate: Generate, denoiser: Denoiser, spec: TeacherSpec, device: torch.device, *, batch: int = 500,
        rank: int = 0, world: int = 1, advance: Callable[[int], None] = lambda n: None,
    ) -> Score:  # fmt: skip
        """Every process computes the whole, which takes a moment."""
        points, nfe, speed = push(generate, denoiser, device)
        advance(self.protocol.samples.count)
        found = divergence(points)
        protocol = self.protocol
        return Score({"kl": found.kl}, nfe, speed, protocol.id, protocol.label, len(points))


def density_ruler() -> DensityRuler:
    """The ruler for the embedded mixture."""
    edges = grid_edges().numpy().astype("<f8").tobytes()
    truth = torch.cat([means().flatten(), torch.tensor([SPREAD], dtype=torch.float64)]).numpy().astype("<f8").tobytes()
    return DensityRuler(
        Protocol(
            name="mixture",
            extractor=ExtractorSpec(
                id=f"points/{CELLS}x{CELLS}", weights_sha256=hashlib.sha256(edges).hexdigest(), dim=2,
                input=f"points in the square of {-HALF:g} to {HALF:g}",
            ),
            samples=SampleSpec(count=POINTS, rng="sobol", labels="none", quantise="none"),
            reference=ReferenceSpec(id="mixture/8", sha256=hashlib.sha256(truth).hexdigest(), count=MODES),
            estimator=EstimatorSpec(metric="kl", version=1, ddof=0),
        )
    )  # fmt: skip


@torch.inference_mode()
def push(
    generate: Generate, denoiser: Denoiser, device: torch.device, count: int = POINTS
) -> tuple[Tensor, float, float]:
    """The generator's points (N, 2) for evenly spread noise, its evaluations of a sample, and its samples/s."""
    sobol = torch.quasirandom.SobolEngine(2).draw(count + 1, dtype=torch.float64)[1:]
    noise = torch.special.ndtri(sobol).float()[:, :, None, None].to(device)
    with count_evaluations(denoiser) as evaluations:
        began = time.perf_counter()
        made = generate(noise, Condition(), list(range(count)))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
    return made.flatten(1).cpu().double(), evaluations() / count, count / seconds


def divergence(points: Tensor) -> Divergence:
    """How far points (N, 2), each of mass 1 / N, are from the mixture."""
    mass, truth = cell_masses(points), true_masses()
    there = mass > 0
    kl = (mass[there] * (mass[there] / truth[there]).log()).sum().item()
    distance, mode = torch.cdist(points, means()).min(1)
    near = distance <= 4 * SPREAD
    share = torch.bincount(mode[near], minlength=MODES) * MODES / len(points)
    return Divergence(kl, 1 - near.double().mean().item(), int((share >= 0.5).sum()))


def grid_edges() -> Tensor:
    """Edges of the cells along one side, (65,) float64."""
    return torch.linspace(-HALF, HALF, CELLS + 1, dtype=torch.float64)


def cell_masses(points: Tensor) -> Tensor:
    """Shares of points (N, 2) in the cells, (64 * 64 + 1,) float64, the last for all outside."""
    column = torch.bucketize(points.contiguous(), grid_edges(), right=True) - 1
    inside = ((column >= 0) & (column < CELLS)).all(1)
    index = torch.where(inside, column[:, 0] * CELLS + column[:, 1], CELLS * CELLS)
    return torch.bincount(index, minlength=CELLS * CELLS + 1).double() / len(points)


def true_masses() -> Tensor:
    """The mixture's mass in the cells, as `cell_masses`, in closed form; no cell is quite empty."""
    standard = (grid_edges()[None, :, None] - means()[:, None, :]) / SPREAD
    # The smaller tail of the two keeps differences of far tails from cancelling to zero.
    tail = torch.where(standard > 0, -standard, standard)
    # Not special.ndtr, which is 0 below -9.
    below = torch.special.erfc(-tail / 2**0.5) / 2
    low, high = below[:, :-1], below[:, 1:]
    straddles = (standard[:, :-1] <= 0) & (standard[:, 1:] > 0)
    sides = torch.where(straddles, 1 - low - high, (high - low).abs())
    cells = torch.einsum("kx,ky->xy", sides[:, :, 0], sides[:, :, 1]).flatten() / MODES
    beyond = below[:, 0] + below[:, -1]
    outside = (beyond.sum(1) - beyond.prod(1)).mean()
    return torch.cat([cells, outside[None]]).clamp(min=1e-300)


def picture(points: Tensor, size: int = 96) -> Tensor:
    """A picture of the density of points (N, 2): (1, size, size) uint8, dark where there are many."""
    edges = torch.linspace(-HALF, HALF, size + 1, dtype=torch.float64)
    column = torch.bucketize(points.double().contiguous(), edges) - 1
    inside = ((column >= 0) & (column < size)).all(1)
    # Rows go down, the second coordinate goes up.
    index = (size - 1 - column[inside, 1]) * size + column[inside, 0]
    count = torch.bincount(index, minlength=size * size).double().view(1, size, size)
    full = len(points) / (MODES * 2 * torch.pi * SPREAD**2) * (2 * HALF / size) ** 2
    return (255 - 255 * (count / full).clamp(0, 1).sqrt()).to(torch.uint8)


assert HALF > RADIUS + 4 * SPREAD, "the square holds the mixture"
