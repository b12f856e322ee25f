"""Target networks: the student's weights as they are, or their moving average."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser, own_parameters


class Target:
    """The network that targets are taken from, without gradient (Song et al. 2023, Eq. 8).

    An objective that owns one returns `network` from `modules`, calls `restart` when a stage begins, and `update` after
    a step.

    Args:
        student: the network that is trained.
        decay: of the moving average, per update; 0 is the student itself.

    Attributes:
        network: the average; None where the student itself is the target.
    """

    def __init__(self, student: Denoiser, decay: float) -> None:
        self.student, self.decay = student, decay
        self.network = copy.deepcopy(student).requires_grad_(False) if decay else None

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        with torch.no_grad():
            return (self.network or self.student)(x, t, condition)

    @torch.no_grad()
    def restart(self) -> None:
        """Make the average equal to the student."""
        if self.network is not None:
            self.network.load_state_dict(self.student.state_dict())

    @torch.no_grad()
    def update(self) -> None:
        """Take in the student's weights after an update."""
        if self.network is not None:
            average: list[Tensor] = [*own_parameters(self.network)]
            present: list[Tensor] = [*own_parameters(self.student)]
            torch._foreach_lerp_(average, present, 1 - self.decay)
