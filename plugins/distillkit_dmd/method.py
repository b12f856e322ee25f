"""The method: its settings and its recipe."""

from __future__ import annotations

from pydantic import Field

from distillkit import Method, MethodConfig, Recipe, StudentGenerator, Teacher
from distillkit.parts import DistanceName, DistributionMatching, FakeScore, Regression, distance_for, own_rate
from distillkit_dmd.presets import PRESETS


class DMDConfig(MethodConfig):
    """Settings of DMD."""

    kl_weight: float = Field(1.0, ge=0, description="weight of the KL objective; 0 turns it off, and the fake score")
    regression_weight: float = Field(0.25, ge=0, description="weight of the regression objective; 0 turns it off")
    distance: DistanceName | None = Field(
        None,
        description="distance of the regression objective; by default lpips for images of 32 pixels and more, which "
        "needs VGG-16 weights, and pseudo-huber elsewhere",
    )
    guidance: float = Field(
        1.0, ge=0, description="guidance weight w of the real score: uncond + w (cond - uncond); 1 is no guidance"
    )
    guidance_rescale: float = Field(
        0.0, ge=0, le=1, description="share to which guided predictions keep their size, against over-saturation: 0.7"
    )
    level_min: float = Field(0.02, ge=0, lt=1, description="smallest noise level of the KL, as a share of the grid")
    level_max: float = Field(0.98, gt=0, lt=1, description="largest noise level of the KL, as a share of the grid")
    fake_lr: float | None = Field(
        None, gt=0, le=1, description="learning rate of the fake score; the student's if none"
    )
    fake_updates: int = Field(1, ge=1, description="updates of the fake score for one of the student")


class DMD(Method):
    """One-step student from two scores and a regression on the teacher's noise-image pairs (Yin et al. 2024)."""

    name = "dmd"
    Config = DMDConfig
    presets = PRESETS
    caution = (
        "Without the regression, or where the fake score lags behind the student, modes are lost and the losses do not "
        "show it: raise --fake-lr, or start at less noise (--start-ratio 2.5)."
    )
    examples = (
        {"kl_weight": 0},
        {"regression_weight": 0},
        {"distance": "l1"},
        {"guidance": 2.0, "guidance_rescale": 0.7},
        {"level_min": 0.2, "level_max": 0.7},
        {"fake_updates": 3, "fake_lr": 1e-3},
    )

    def recipe(self, teacher: Teacher, config: DMDConfig) -> Recipe:
        student = StudentGenerator.from_teacher(teacher)
        objectives: list[DistributionMatching | Regression] = []
        if config.regression_weight:
            distance = distance_for(teacher, config.distance)
            objectives.append(Regression(distance, weight=config.regression_weight))
        if not config.kl_weight:
            return Recipe(student, objectives)
        fake = FakeScore.from_teacher(teacher, optimizer=own_rate(config.fake_lr))
        levels = (config.level_min, config.level_max)
        kl = DistributionMatching(teacher, fake, weight=config.kl_weight, guidance=config.guidance,
                                  rescale=config.guidance_rescale, levels=levels)  # fmt: skip
        return Recipe(student, [kl, *objectives], [fake], student_every=config.fake_updates, guidance=config.guidance)
