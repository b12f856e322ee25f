"""The weight of the loss over noise levels, learnt beside the student."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from distillkit import Learner, OptimizerConfig, Step
from distillkit.diffusion import l2
from distillkit.parts import CLEAN
from distillkit_scm.tangents import Tangents

WIDTH, FREQUENCIES = 64, 8


class AdaptiveWeight(Learner):
    """w_phi(t) from E exp(w_phi(t)) e(t) - w_phi(t), whose minimum exp(w) = 1 / E[e | t] makes every level count alike
    (Lu & Song 2024, section 4.2; Karras et al. 2024, arXiv 2312.02696, Eq. 21).

    e is the objective's error in the same step; nothing is evaluated for it anew.
    """

    name = "adaptive_weight"

    def __init__(self, tangents: Tangents, *, optimizer: OptimizerConfig | None = None) -> None:
        super().__init__(optimizer=optimizer)
        self.tangents, self.needs = tangents, (CLEAN[tangents.source],)
        self.first, self.last = nn.Linear(2 * FREQUENCIES, WIDTH), nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, level: Tensor) -> Tensor:
        """w_phi of levels ln(sigma / alpha), (B,) -> (B,), in float32."""
        with torch.autocast(level.device.type, enabled=False):
            frequencies = math.pi / 32 * 2.0 ** torch.arange(FREQUENCIES, device=level.device)
            angles = level.float()[:, None] * frequencies
            hidden = nn.functional.silu(self.first(torch.cat([angles.cos(), angles.sin()], dim=1)))
            return self.last(hidden)[:, 0]

    def loss(self, step: Step) -> Tensor:
        level, tangent = self.tangents.of(step)
        error, w = l2(tangent, torch.zeros_like(tangent)) / level.exp(), self(level)
        return (w.exp() * error - w).mean()
