"""Kernel Inception distance, the full U-statistic, so that one set of samples has one value; Inception score."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.evaluation.frechet import Jackknife

BLOCK = 1024


def kernel_distance(x: Tensor, y: Tensor, groups: Tensor | None = None) -> Jackknife:
    """Unbiased squared MMD with k(x, y) = (x.y / d + 1)^3 (Binkowski et al. 2018, arXiv 1801.01401).

    All pairs count, none with itself: no random subsets, hence no seed and no spread that is not an error bar.

    Args:
        x: (n, d), y: (m, d); computed in float64 by blocks.
        groups: (n,) int64, of every row of x; the values without each of them take no further pass over the pairs.

    Raises:
        ValueError: for fewer than two rows.
    """
    if len(x) < 2 or len(y) < 2:
        raise ValueError("the kernel distance needs at least two samples of each kind")
    of_x = _membership(torch.zeros(len(x), dtype=torch.int64) if groups is None else groups)
    of_y = torch.ones(len(y), 1, dtype=torch.float64)
    pairs = _sums(x, x, of_x, of_x) - torch.diag(_own(x) @ of_x)
    across, sizes = _sums(x, y, of_x, of_y)[:, 0], of_x.sum(0)
    within_y = ((_sums(y, y, of_y, of_y) - _own(y).sum()) / (len(y) * (len(y) - 1))).item()

    def value(kept: Tensor) -> float:
        n = sizes[kept].sum()
        within_x = pairs[kept][:, kept].sum() / (n * (n - 1))
        return (within_x - 2 * across[kept].sum() / (n * len(y))).item() + within_y

    everyone = torch.ones(len(sizes), dtype=torch.bool)
    if groups is None:
        return Jackknife(value(everyone), ())
    rest = everyone.repeat(len(sizes), 1).fill_diagonal_(False)
    return Jackknife(value(everyone), tuple(value(kept) for kept in rest))


def _membership(groups: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(groups).double()


def _sums(x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor) -> Tensor:
    """Sums of the kernel over all pairs of a group of x with a group of y: (groups of x, groups of y)."""
    total = torch.zeros(of_x.shape[1], of_y.shape[1], dtype=torch.float64)
    for a, in_a in zip(x.split(BLOCK), of_x.split(BLOCK), strict=True):
        for b, in_b in zip(y.split(BLOCK), of_y.split(BLOCK), strict=True):
            kernel = ((a.double() @ b.double().T) / x.shape[1]).add_(1).pow_(3)
            total += in_a.T @ kernel @ in_b
    return total


def _own(x: Tensor) -> Tensor:
    """The kernel of every row with itself: (n,)."""
    return torch.cat([((a.double().square().sum(1) / x.shape[1]) + 1).pow(3) for a in x.split(BLOCK)])


def inception_score(probabilities: Tensor, splits: int = 1) -> tuple[float, float]:
    """exp E_x KL(p(y|x) || p(y)) (Salimans et al. 2016): mean and standard deviation over splits in order.

    Args:
        probabilities: (n, classes), rows that sum to one.
        splits: parts of which each has its own p(y); the figure depends on their number.
    """
    scores, count = [], len(probabilities)
    for k in range(splits):
        part = probabilities[k * count // splits : (k + 1) * count // splits].double()
        marginal = part.mean(0, keepdim=True)
        divergence = torch.special.xlogy(part, part) - torch.special.xlogy(part, marginal)
        scores.append(divergence.sum(1).mean().exp())
    values = torch.stack(scores)
    return values.mean().item(), values.std(correction=0).item()


def inception_jackknife(probabilities: Tensor, groups: Tensor | None = None) -> Jackknife:
    """The Inception score in one split, and without each group (n,) int64 of samples."""
    left_out = () if groups is None else tuple(
        inception_score(probabilities[groups != group])[0] for group in range(int(groups.max()) + 1)
    )  # fmt: skip
    return Jackknife(inception_score(probabilities)[0], left_out)
