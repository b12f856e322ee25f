"""Fréchet distance between Gaussians, by symmetric eigenvalue problems alone, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distillkit.evaluation.moments import Moments


@dataclass(frozen=True)
class FrechetDistance:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S2^1/2 S1 S2^1/2)^1/2) and its two terms."""

    mean_term: float
    covariance_term: float

    @property
    def value(self) -> float:
        return self.mean_term + self.covariance_term


def frechet_distance(mean: Tensor, covariance: Tensor, ref_mean: Tensor, ref_covariance: Tensor) -> FrechetDistance:
    """Fréchet distance (Dowson & Landau 1982; Heusel et al. 2017) of N(mean, covariance) to the reference.

    Args:
        mean, ref_mean: (d,) float64.
        covariance, ref_covariance: (d, d) float64, symmetric positive semi-definite.
    """
    return distance_to(mean, covariance, ref_mean, matrix_sqrt(ref_covariance))


def distance_to(mean: Tensor, covariance: Tensor, ref_mean: Tensor, ref_root: Tensor) -> FrechetDistance:
    """As `frechet_distance`, given the square root of the reference's covariance, which need be taken only once.

    tr((S1 S2)^1/2) is the sum of the square roots of the eigenvalues of the symmetric S2^1/2 S1 S2^1/2. These are
    real and, up to rounding, non-negative, so no imaginary part can arise and singular covariances need no offset.
    """
    # eigvalsh reads the lower triangle alone, so rounding cannot make the product less than symmetric.
    cross = torch.linalg.eigvalsh(ref_root @ covariance @ ref_root).clamp(min=0).sqrt().sum()
    trace = covariance.trace() + ref_root.square().sum() - 2 * cross
    return FrechetDistance((mean - ref_mean).square().sum().item(), trace.item())


def matrix_sqrt(matrix: Tensor) -> Tensor:
    """Symmetric square root of a symmetric positive semi-definite matrix (d, d)."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


@dataclass(frozen=True)
class Jackknife:
    """A statistic with its delete-a-group jackknife (Efron & Stein 1981).

    Args:
        value: of all samples.
        leave_one_out: of all samples but one group's, for every group.
    """

    value: float
    leave_one_out: tuple[float, ...]

    @property
    def corrected(self) -> float:
        """G value - (G - 1) mean(leave_one_out): without the bias of order 1/N."""
        groups = len(self.leave_one_out)
        return groups * self.value - (groups - 1) * sum(self.leave_one_out) / groups

    @property
    def standard_error(self) -> float:
        """sqrt((G - 1) / G sum (leave_one_out - mean)^2)."""
        return jackknife_error(self.leave_one_out)


def jackknife_error(leave_one_out: Sequence[float]) -> float:
    """Standard error from leave-one-group-out values; of a difference, from the differences of two generators."""
    groups = len(leave_one_out)
    mean = sum(leave_one_out) / groups
    return math.sqrt((groups - 1) / groups * sum((value - mean) ** 2 for value in leave_one_out))


def without(whole: Moments, group: Moments) -> Moments:
    """The moments of all samples but a group's."""
    rest = Moments(len(whole.mean))
    rest.count = whole.count - group.count
    rest.mean = (whole.mean * whole.count - group.mean * group.count) / rest.count
    delta = group.mean - rest.mean
    rest.scatter = (whole.scatter - group.scatter).addr_(delta, delta, alpha=-group.count * rest.count / whole.count)
    return rest
