"""The method: its settings and its recipe."""

from __future__ import annotations

import torch
from pydantic import Field

from distillkit import Method, MethodConfig, OneStep, Recipe, StudentGenerator, Teacher
from distillkit.parts import FakeScore, lognormal_levels, own_rate
from distillkit_sid.presets import PRESETS
from distillkit_sid.score_identity import ScoreIdentity

START_RATIO = 2.5
"""sigma_init, the noise-to-signal ratio at which the student is evaluated (Zhou et al. 2024, section 4.1)."""


class SiDConfig(MethodConfig):
    """Settings of SiD."""

    alpha: float = Field(1.2, ge=0, le=2, description="alpha of the loss: 1 leaves the squared difference out")
    largest: float = Field(0.8, gt=0, le=1, description="largest noise level of the loss, as a share of the grid")
    guidance: float = Field(1.0, ge=0, description="guidance weight w of the teacher: uncond + w (cond - uncond)")
    fake_lr: float | None = Field(
        None, gt=0, le=1, description="learning rate of the fake score; the student's if none"
    )


class SiD(Method):
    """One-step student by score identity distillation, without data or pairs (Zhou et al. 2024)."""

    name = "sid"
    Config = SiDConfig
    presets = PRESETS
    examples = ({"alpha": 1.0, "largest": 1.0}, {"guidance": 2.0}, {"fake_lr": 1e-3})

    def recipe(self, teacher: Teacher, config: SiDConfig) -> Recipe:
        start = teacher.schedule.at(torch.tensor([START_RATIO], dtype=torch.float64)).item()
        student = StudentGenerator.from_teacher(teacher, OneStep(t=start))
        levels = lognormal_levels(teacher.schedule)
        fake = FakeScore(teacher.copy_denoiser(), levels, optimizer=own_rate(config.fake_lr))
        objective = ScoreIdentity(teacher, fake, alpha=config.alpha, largest=config.largest, guidance=config.guidance)
        return Recipe(student, [objective], [fake], guidance=config.guidance)
