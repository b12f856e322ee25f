"""Estimators by nearest neighbours in feature space: precision, recall, density, coverage, memorisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1024


@dataclass(frozen=True)
class Manifolds:
    """Shares in [0, 1] (density may exceed 1).

    Args:
        precision: of generated samples within the real manifold (Kynkaanniemi et al. 2019, arXiv 1904.06991).
        recall: of real samples within the generated manifold.
        density: mean number of real neighbourhoods around a generated sample, over k (Naeem et al. 2020, 2002.09797).
        coverage: of real samples whose neighbourhood holds a generated one.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifolds(generated: Tensor, real: Tensor, k: int = 3) -> Manifolds:
    """Precision, recall, density and coverage with k-th neighbours, a sample itself not counted.

    Args:
        generated: (n, d). real: (m, d). Distances are taken in float64, by blocks.

    Raises:
        ValueError: for no more than `k` samples of either kind.
    """
    if min(len(generated), len(real)) <= k:
        raise ValueError(f"precision and recall need more than {k} samples of each kind")
    real_radius, generated_radius = neighbour_distance(real, k), neighbour_distance(generated, k)
    within, number, recalled, covered = (
        0,
        0,
        torch.zeros(len(real), dtype=torch.bool),
        torch.zeros(len(real), dtype=torch.bool),
    )
    for start in range(0, len(generated), BLOCK):
        distance = _distances(generated[start : start + BLOCK], real)
        inside = distance <= real_radius
        within += int(inside.any(1).sum())
        number += int(inside.sum())
        covered |= inside.any(0)
        recalled |= (distance <= generated_radius[start : start + BLOCK, None]).any(0)
    return Manifolds(
        precision=within / len(generated),
        recall=recalled.double().mean().item(),
        density=number / (k * len(generated)),
        coverage=covered.double().mean().item(),
    )


def neighbour_distance(x: Tensor, k: int) -> Tensor:
    """Distance (n,) float64 of every row to its k-th neighbour, itself not counted."""
    found = []
    for start in range(0, len(x), BLOCK):
        distance = _distances(x[start : start + BLOCK], x)
        rows = torch.arange(len(distance))
        distance[rows, start + rows] = torch.inf
        found.append(distance.kthvalue(k, dim=1).values)
    return torch.cat(found)


def memorisation(generated: Tensor, real: Tensor) -> float:
    """Median distance of a generated sample to its nearest real one, over that of a real one to another real one.

    About 1 for new samples of the same distribution, towards 0 for copies. The Fréchet distance rewards copying;
    this shows it.
    """
    nearest = torch.cat([_distances(part, real).min(1).values for part in generated.split(BLOCK)])
    return (nearest.median() / neighbour_distance(real, 1).median()).item()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # The direct form: the shortcut by inner products loses the small distances that decide.
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")
