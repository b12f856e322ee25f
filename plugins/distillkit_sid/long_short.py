"""Long and short guidance: a fake score that is guided as the teacher is, in its training and in the student's loss."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit import Condition, OptimizerConfig, Step, Teacher
from distillkit.parts import FakeScore, Levels, weighted_error

DROPPED = 0.1
"""Share of conditions that are left out of the fake score's training, so that it knows what none is."""


class GuidedFakeScore(FakeScore):
    """f_psi = uncond + w (cond - uncond), trained to be the score of the student's samples as a whole
    (Zhou et al. 2024, arXiv 2406.01561: kappa_1 = kappa_2 = kappa_3 = w).

    Args:
        teacher: it starts as a copy of its network, and its conditioner says what no condition is.
        levels: the distribution of noise levels.
        guidance: w.
        optimizer: see `Learner`.
    """

    def __init__(
        self, teacher: Teacher, levels: Levels, *, guidance: float, optimizer: OptimizerConfig | None = None
    ) -> None:
        super().__init__(teacher.copy_denoiser(), levels, optimizer=optimizer)
        self.teacher, self.guidance = teacher, guidance

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The guided prediction of x0 from x (B, ...) at t (B,), in one pass over both halves."""
        if not condition:
            return self.denoiser(x, t, condition)
        both = Condition.cat([self.teacher.conditioner.null(condition), condition])
        null, conditional = self.denoiser(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return torch.lerp(null, conditional, self.guidance)

    def loss(self, step: Step) -> Tensor:
        x0, t = step.samples.detach(), self.draw_levels(step, "fake/level")
        noisy = self.denoiser.schedule.add_noise(x0, step.normal("fake/noise"), t)
        return weighted_error(self(noisy, t, self.partly_dropped(step)), x0, self.denoiser.loss_weight(t))

    def partly_dropped(self, step: Step) -> Condition:
        """The step's conditions, a tenth of them replaced by none."""
        if not step.condition:
            return step.condition
        dropped = (step.uniform("fake/dropped") < DROPPED).to(step.device)
        return Condition.where(dropped, self.teacher.conditioner.null(step.condition), step.condition)
