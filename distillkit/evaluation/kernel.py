"""Kernel Inception distance: the full U-statistic, so that one set of samples has one value."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1024


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased squared MMD with k(x, y) = (x.y / d + 1)^3 (Binkowski et al. 2018, arXiv 1801.01401).

    All pairs count, none with itself: no random subsets, hence no seed and no spread that is not an error bar.

    Args:
        x: (n, d), y: (m, d); computed in float64 by blocks.

    Raises:
        ValueError: for fewer than two rows.
    """
    if len(x) < 2 or len(y) < 2:
        raise ValueError("the kernel distance needs at least two samples of each kind")
    same_x, same_y = _sum(x, x), _sum(y, y)
    own_x, own_y = _diagonal(x), _diagonal(y)
    n, m = len(x), len(y)
    within = (same_x - own_x) / (n * (n - 1)) + (same_y - own_y) / (m * (m - 1))
    return within - 2 * _sum(x, y) / (n * m)


def _sum(x: Tensor, y: Tensor) -> float:
    total = 0.0
    for a in x.split(BLOCK):
        for b in y.split(BLOCK):
            total += ((a.double() @ b.double().T) / x.shape[1]).add_(1).pow_(3).sum().item()
    return total


def _diagonal(x: Tensor) -> float:
    return sum(((a.double().square().sum(1) / x.shape[1]) + 1).pow(3).sum().item() for a in x.split(BLOCK))


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
