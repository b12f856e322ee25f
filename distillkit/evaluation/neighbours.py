"""Estimators by nearest neighbours in feature space: precision, recall, density, coverage, memorisation."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.evaluation.frechet import Jackknife

BLOCK = 1024


NAMES = ("precision", "recall", "density", "coverage")


def manifolds(generated: Tensor, real: Tensor, k: int = 3, groups: Tensor | None = None) -> dict[str, Jackknife]:
    """Precision, recall, density and coverage with k-th neighbours, a sample itself not counted.

    precision: share of generated samples within the real manifold (Kynkaanniemi et al. 2019, arXiv 1904.06991).
    recall: share of real samples within the generated manifold.
    density: mean number of real neighbourhoods around a generated sample, over k (Naeem et al. 2020, 2002.09797).
    coverage: share of real samples whose neighbourhood holds a generated one.

    Args:
        generated: (n, d). real: (m, d). Distances are taken in float64, by blocks.
        groups: (n,) int64, of every generated sample; the values without each of them take no further distances.

    Raises:
        ValueError: for no more than `k` samples of either kind.
    """
    if min(len(generated), len(real)) <= k:
        raise ValueError(f"precision and recall need more than {k} samples of each kind")
    kept = _kept(len(generated), groups)
    radius = neighbour_distance(real, k)
    radii = _radii(generated, k, kept)
    inside, number = torch.zeros(len(generated), dtype=torch.float64), torch.zeros(len(generated), dtype=torch.float64)
    recalled, covered = (torch.zeros(len(kept), len(real), dtype=torch.bool) for _ in range(2))
    for rows in torch.arange(len(generated)).split(BLOCK):
        distance = _distances(generated[rows], real)
        within = distance <= radius
        inside[rows], number[rows] = within.any(1).double(), within.sum(1).double()
        for case, members in enumerate(kept[:, rows]):
            covered[case] |= within[members].any(0)
            recalled[case] |= (distance <= radii[case, rows, None])[members].any(0)
    values = zip(
        ((inside[members].mean() for members in kept)), (hit.double().mean() for hit in recalled),
        (number[members].mean() / k for members in kept), (hit.double().mean() for hit in covered), strict=True,
    )  # fmt: skip
    whole, *left_out = ([value.item() for value in case] for case in values)
    return {name: Jackknife(whole[n], tuple(case[n] for case in left_out)) for n, name in enumerate(NAMES)}


def memorisation(generated: Tensor, real: Tensor, groups: Tensor | None = None) -> Jackknife:
    """Median distance of a generated sample to its nearest real one, over that of a real one to another real one.

    About 1 for new samples of the same distribution, towards 0 for copies. The Fréchet distance rewards copying;
    this shows it.

    Args:
        groups: (n,) int64, of every generated sample, for the values without each of them.
    """
    nearest = torch.cat([_distances(part, real).min(1).values for part in generated.split(BLOCK)])
    usual = neighbour_distance(real, 1).median()
    whole, *left_out = ((nearest[members].median() / usual).item() for members in _kept(len(generated), groups))
    return Jackknife(whole, tuple(left_out))


def neighbour_distance(x: Tensor, k: int) -> Tensor:
    """Distance (n,) float64 of every row to its k-th neighbour, itself not counted."""
    return _radii(x, k, _kept(len(x), None))[0]


def _kept(count: int, groups: Tensor | None) -> Tensor:
    """Which samples count: (1, count) all of them, and without each group, (1 + groups, count) bool."""
    everyone = torch.ones(1, count, dtype=torch.bool)
    if groups is None:
        return everyone
    return torch.cat([everyone, groups != torch.arange(int(groups.max()) + 1)[:, None]])


def _radii(x: Tensor, k: int, kept: Tensor) -> Tensor:
    """Distance of every row to its k-th neighbour among those that are kept: (cases, n) float64.

    What is left out of a case is kept in every other, so the k nearest of each case's rest are all that can matter.
    """
    groups = [members.logical_not().nonzero()[:, 0] for members in kept[1:]] or [torch.arange(len(x))]
    found = []
    for rows in torch.arange(len(x)).split(BLOCK):
        distance = _distances(x[rows], x)
        distance[torch.arange(len(rows)), rows] = torch.inf
        nearest = [distance[:, group].topk(min(k, len(group)), largest=False).values for group in groups]
        cases = [nearest, *([part for other, part in enumerate(nearest) if other != g] for g in range(len(kept) - 1))]
        found.append(torch.stack([torch.cat(case, 1).kthvalue(k, dim=1).values for case in cases]))
    return torch.cat(found, 1)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # The direct form: the shortcut by inner products loses the small distances that decide.
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")
