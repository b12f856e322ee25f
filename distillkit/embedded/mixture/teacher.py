"""The embedded teacher whose distribution is known: eight Gaussians on a circle, with their exact denoiser.

Everything about it can be computed: its scores, its samples' density, and so how far a student is from it. Students and
score estimators start from a small network that was fitted to the exact denoiser.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.teacher import Teacher, TeacherSpec

MODES, RADIUS, SPREAD = 8, 0.7, 0.05


def means() -> Tensor:
    """The centres of the modes, (8, 2) float64."""
    angle = 2 * math.pi * torch.arange(MODES, dtype=torch.float64) / MODES
    return RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)


class MixtureDenoiser(Denoiser):
    """E[x0 | x] for x0 from equal Gaussians N(m_k, s^2 I) and x = x0 + sigma n, in closed form:

    D = sum_k r_k (s^2 x + sigma^2 m_k) / (s^2 + sigma^2), r_k = softmax_k(-|x - m_k|^2 / (2 (s^2 + sigma^2))).
    """

    def __init__(self) -> None:
        super().__init__()
        self.means: Tensor
        self.register_buffer("means", means().float())

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        points, variance = x.flatten(1), sigma.to(x.dtype).square()[:, None]
        total = variance + SPREAD**2
        distances = (points[:, None] - self.means.to(x.dtype)).square().sum(2)
        nearest = torch.softmax(-distances / (2 * total), dim=1) @ self.means.to(x.dtype)
        return ((SPREAD**2 * points + variance * nearest) / total).view_as(x)


class MixtureTeacher(Teacher):
    """The exact denoiser as a teacher of points (B, 2, 1, 1).

    Args:
        start: the network that students and score estimators are copies of.
    """

    def __init__(self, start: Denoiser, spec: TeacherSpec) -> None:
        super().__init__(MixtureDenoiser(), spec)
        self.start = start.eval().requires_grad_(False)

    def copy_denoiser(self) -> Denoiser:
        return copy.deepcopy(self.start).requires_grad_(True).eval()

    def to(self, device: torch.device | str) -> Teacher:
        self.start.to(device)
        return super().to(device)
