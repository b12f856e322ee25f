"""How far a generator of points is from the embedded mixture: computed on a grid of cells, not estimated from features.

The truth's mass in every cell is known in closed form. The generator's is found by pushing evenly spread noise (a Sobol
sequence through the normal quantile) through it: a quadrature, the same for every generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from distillkit.contracts.codec import Content
from distillkit.embedded.mixture.teacher import MODES, RADIUS, SPREAD, means
from distillkit.evaluation.extractor import FeatureExtractor
from distillkit.evaluation.features import Kept
from distillkit.evaluation.measure import Measure
from distillkit.evaluation.protocol import EstimatorSpec, ExtractorSpec, Protocol, ReferenceSpec, SampleSpec
from distillkit.evaluation.record import Figure

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


class PointCoordinates(FeatureExtractor):
    """The points (B, 2) themselves, which are then counted in cells."""

    takes: ClassVar[tuple[Content, ...]] = ("points",)

    def __init__(self) -> None:
        super().__init__()
        edges = grid_edges().numpy().astype("<f8").tobytes()
        self.spec = ExtractorSpec(
            id=f"points/{CELLS}x{CELLS}", weights_sha256=hashlib.sha256(edges).hexdigest(), dim=2,
            input=f"points in the square of {-HALF:g} to {HALF:g}",
        )  # fmt: skip

    def forward(self, points: Tensor) -> Tensor:
        return points


class MixtureMeasure(Measure):
    """The Kullback-Leibler divergence from the embedded mixture: computed, so it has no sampling error."""

    batch: ClassVar[int] = 4096  # stays in a core's cache: all at once take twice as long
    metrics: ClassVar[tuple[str, ...]] = ("kl",)

    def __init__(self) -> None:
        numbers = torch.cat([means().flatten(), torch.tensor([SPREAD], dtype=torch.float64)]).numpy()
        truth = hashlib.sha256(numbers.astype("<f8").tobytes()).hexdigest()
        extractor = PointCoordinates()
        super().__init__(
            Protocol(
                name="mixture",
                extractor=extractor.spec,
                samples=SampleSpec(count=POINTS, rng="sobol", labels="none", quantise="none"),
                reference=ReferenceSpec(id="mixture/8", sha256=truth, count=MODES),
                estimator=EstimatorSpec(metric="kl", version=1, ddof=0),
            ),
            extractor,
        )

    def figures(self, kept: Kept, metrics: Sequence[str]) -> tuple[dict[str, Figure], list[str]]:
        found, cells = divergence(kept.features.double()), self.extractor.spec.id
        return {
            self.protocol.label: Figure(value=found.kl, estimator="kl@1, computed"),
            f"between[{cells}]": Figure(value=found.between, estimator="mass beyond 4 deviations@1, computed"),
            f"covered[{cells}]": Figure(value=found.covered, estimator="modes with half their mass@1, computed"),
        }, []

    def with_samples(self, count: int | None = None, first_seed: int | None = None) -> Self:
        """Itself: the points of the quadrature are always the same ones, and pushing them takes a moment."""
        return self


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


def offered_protocols() -> Mapping[str, Callable[[], Measure]]:
    """What the plugin's hook for protocols returns."""
    return {"mixture": MixtureMeasure}


assert HALF > RADIUS + 4 * SPREAD, "the square holds the mixture"
