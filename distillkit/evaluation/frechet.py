"""Fréchet distance between Gaussians, by symmetric eigenvalue problems alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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

    tr((S1 S2)^1/2) is the sum of the square roots of the eigenvalues of the symmetric S2^1/2 S1 S2^1/2. These are
    real and, up to rounding, non-negative, so no imaginary part can arise and singular covariances need no offset.

    Args:
        mean, ref_mean: (d,) float64.
        covariance, ref_covariance: (d, d) float64, symmetric positive semi-definite.
    """
    root = matrix_sqrt(ref_covariance)
    product = root @ covariance @ root
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0)
    cross = eigenvalues.sqrt().sum()
    trace = covariance.trace() + ref_covariance.trace() - 2 * cross
    return FrechetDistance((mean - ref_mean).square().sum().item(), trace.item())


def matrix_sqrt(matrix: Tensor) -> Tensor:
    """Symmetric square root of a symmetric positive semi-definite matrix (d, d)."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
