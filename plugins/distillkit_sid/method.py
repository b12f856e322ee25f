"""The method: its settings and its recipe."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from distillkit import Method, MethodConfig, OneStep, Recipe, StudentGenerator, Teacher
from distillkit.parts import LEVELS, FakeScore, evenly_from, lognormal_levels, noise_levels, own_rate
from distillkit_sid.long_short import GuidedFakeScore
from distillkit_sid.presets import PRESETS
from distillkit_sid.score_identity import ScoreIdentity

START_RATIO = 2.5
"""sigma_init, the noise-to-signal ratio at which the student is evaluated (Zhou et al. 2024, section 4.1)."""


def one_step_student(teacher: Teacher) -> StudentGenerator:
    """A student of one evaluation at `START_RATIO`, or at the schedule's end where that is lower."""
    start = teacher.schedule.at(torch.tensor([START_RATIO], dtype=torch.float64)).item()
    return StudentGenerator.from_teacher(teacher, OneStep(t=start))


class SiDConfig(MethodConfig):
    """Settings of SiD."""

    alpha: float = Field(1.2, ge=0, le=2, description="alpha of the loss: 1 leaves the squared difference out")
    smallest: float = Field(0.0, ge=0, lt=1, description="smallest noise level of the loss, as a share of the grid")
    largest: float = Field(0.8, gt=0, le=1, description="largest noise level of the loss, as a share of the grid")
    guidance: float = Field(1.0, ge=0, description="guidance weight w of the teacher: uncond + w (cond - uncond)")
    fake_guidance: float = Field(
        1.0, ge=0, description="guidance weight of the fake score, in its own training too (long and short guidance)"
    )
    fake_levels: Literal["lognormal", "grid"] = Field(
        "lognormal", description="noise levels of the fake score: EDM's, or those of the loss, evenly from the grid"
    )
    fake_level_mean: float = Field(
        -1.2, ge=-20, le=20, description="mean of ln(sigma / alpha) of the fake score's lognormal levels"
    )
    fake_level_std: float = Field(1.2, gt=0, le=20, description="standard deviation of these")
    fake_lr: float | None = Field(
        None, gt=0, le=1, description="learning rate of the fake score; the student's if none"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if round(self.smallest * LEVELS) >= round(self.largest * LEVELS):
            raise ValueError(f"smallest {self.smallest:g} must be less than largest {self.largest:g}")
        return self


class SiD(Method):
    """One-step student by score identity distillation, without data or pairs (Zhou et al. 2024)."""

    name = "sid"
    Config = SiDConfig
    presets = PRESETS
    caution = (
        "Nothing but two scores holds the student: it may diverge late, and seeds end far apart; keep RUN@best and "
        "lower --lr."
    )
    examples = (
        {"alpha": 1.0, "largest": 1.0},
        {"guidance": 2.0, "fake_guidance": 2.0},
        {"fake_lr": 1e-3, "fake_levels": "grid", "smallest": 0.02},
    )

    def recipe(self, teacher: Teacher, config: SiDConfig) -> Recipe:
        student = one_step_student(teacher)
        times = noise_levels(teacher.schedule)[round(config.smallest * LEVELS) : round(config.largest * LEVELS)]
        if config.fake_levels == "grid":
            levels = evenly_from(times)
        else:
            levels = lognormal_levels(teacher.schedule, mean=config.fake_level_mean, std=config.fake_level_std)
        fake = FakeScore(teacher.copy_denoiser(), levels, optimizer=own_rate(config.fake_lr))
        if config.fake_guidance != 1:
            fake = GuidedFakeScore(teacher, levels, guidance=config.fake_guidance, optimizer=own_rate(config.fake_lr))
        objective = ScoreIdentity(teacher, fake, times, alpha=config.alpha, guidance=config.guidance)
        return Recipe(
            student, [objective], [fake], guidance=config.guidance, guided={"fake_guidance": config.fake_guidance}
        )
