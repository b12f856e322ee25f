"""Power-function averages of weights, and any of them made after the training out of a few that were kept (post-hoc
EMA, Karras et al. 2024, arXiv 2312.02696, section 3).

The average of time T with exponent gamma weighs the weights of time t by p(t) = (gamma + 1) t^gamma / T^(gamma + 1),
0 <= t <= T. People name it by sigma_rel, the standard deviation of that profile as a share of T: about 0.05 to 0.25.
Times may be in any unit; here they are images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LARGEST = 12**-0.5
"""sigma_rel of gamma = 0, which weighs all times alike; that of every other profile is smaller."""
ROUNDING = 1e-12
"""Added to the squared norm of each profile, which is 1. Averages are kept in float32: coefficients of averages that
are almost alike, or very many, would else be large, cancel, and leave the sum of their rounding errors."""


def gamma_of(sigma_rel: float) -> float:
    """The exponent of a relative standard deviation: sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (Eq. 123).

    Raises:
        ValueError: for one that no exponent from 0 has.
    """
    if not 0 < sigma_rel <= LARGEST * (1 + 1e-9):
        raise ValueError(f"sigma_rel is {sigma_rel:g}, and lies between 0 and {LARGEST:.4f}")
    square = sigma_rel**-2
    # The largest root of (gamma + 2)^2 (gamma + 3) = (gamma + 1) / sigma_rel^2.
    return float(np.roots([1, 7, 16 - square, 12 - square]).real.max())


def sigma_rel_of(gamma: float) -> float:
    """The relative standard deviation of an exponent from 0 (Eq. 123)."""
    return float(np.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2))


def power_decay(sigma_rel: float, images: float, seen: float) -> float:
    """beta of average <- beta average + (1 - beta) weights after a step of `images` images, `seen` in all, the step's
    among them: (1 - images / seen)^(gamma + 1) (Eq. 127)."""
    left = max(0.0, 1 - images / seen) if seen > 0 else 0.0
    return float(left ** (gamma_of(sigma_rel) + 1))


@dataclass(frozen=True)
class Profile:
    """The profile of an average.

    Args:
        time: T, of the last weights that it holds.
        sigma_rel: its relative standard deviation.
    """

    time: float
    sigma_rel: float


@dataclass(frozen=True)
class Mixture:
    """How a profile is made of others.

    Args:
        coefficients: of the others, in their order; their sum is 1.
        error: the part of the profile that is not met: the norm of the difference over that of the profile.
    """

    coefficients: tuple[float, ...]
    error: float


def mixture(kept: Sequence[Profile], wanted: Profile) -> Mixture:
    """The combination of kept averages whose profile is closest to a wanted one: least squares over time, scaled to the
    sum 1 (Algorithm 3), with coefficients that are kept small where that costs nothing (`ROUNDING`).

    Args:
        kept: no two alike.
    """
    gram = _products(kept, kept)
    toward = _products(kept, [wanted])[:, 0]
    # Profiles of unit norm: the same solution, of a matrix that is less out of balance.
    scale = 1 / np.sqrt(np.diag(gram))
    found = scale * np.linalg.solve(gram * np.outer(scale, scale) + ROUNDING * np.eye(len(kept)), scale * toward)
    found = found / found.sum()
    norm = _products([wanted], [wanted])[0, 0]
    off = found @ gram @ found - 2 * found @ toward + norm
    return Mixture(tuple(found.tolist()), float(np.sqrt(max(0.0, off) / norm)))


def _products(a: Sequence[Profile], b: Sequence[Profile]) -> NDArray[np.float64]:
    """Inner products of all pairs of profiles over time, (len(a), len(b)) (Eq. 151)."""
    time_a, time_b = (np.array([p.time for p in profiles], dtype=np.float64) for profiles in (a, b))
    gamma_a, gamma_b = (np.array([gamma_of(p.sigma_rel) for p in profiles]) for profiles in (a, b))
    earlier = time_a[:, None] < time_b[None]
    first, last = np.minimum(time_a[:, None], time_b[None]), np.maximum(time_a[:, None], time_b[None])
    # The profile that ends later is small where the other one ends: by the ratio of times to the power of its gamma.
    power = np.where(earlier, gamma_b[None], gamma_a[:, None])
    both = (gamma_a[:, None] + 1) * (gamma_b[None] + 1) / (gamma_a[:, None] + gamma_b[None] + 1)
    products: NDArray[np.float64] = both * (first / last) ** power / last
    return products
