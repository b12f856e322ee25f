"""The student's part of the GAN."""

from __future__ import annotations

from torch import Tensor

from distillkit import Objective, Samples, Step
from distillkit.parts import generator_loss
from distillkit_dmd2.critic import Critic


class Adversarial(Objective):
    """softplus(-D(x_t)) with x_t the student's noisy sample (Yin et al. 2024, arXiv 2405.14867, Eq. 4)."""

    needs = (Samples,)

    def __init__(self, critic: Critic, *, weight: float) -> None:
        super().__init__(weight)
        self.critic = critic

    def __call__(self, step: Step) -> Tensor:
        t = self.critic.draw_levels(step, "gan/level")
        return generator_loss(self.critic.logits(step.samples, step.normal("gan/noise"), t, step.condition))
