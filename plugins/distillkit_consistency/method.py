"""The method: its settings and its recipe."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from distillkit import Method, MethodConfig, Recipe, StudentGenerator, Teacher
from distillkit.diffusion import WEIGHTINGS, ConsistencySampler, WeightingName, boundary_for
from distillkit.parts import CleanSource, DistanceName, StepName, distance_for
from distillkit_consistency.consistency import ConsistencyLoss
from distillkit_consistency.growth import Growth
from distillkit_consistency.presets import PRESETS


class ConsistencyConfig(MethodConfig):
    """Settings of consistency distillation and training."""

    levels: int = Field(40, ge=2, description="noise levels of the grid on which neighbours are compared")
    first_levels: int | None = Field(
        None,
        ge=2,
        description="levels of the first grid, from which it grows to `levels`, the target's decay with it, as in "
        "consistency training (there 2); as many throughout if none",
    )
    skip: int = Field(1, ge=1, description="levels of the grid from a point to its neighbour (LCM: 20 of 1000)")
    solver: StepName = Field("heun", description="step of the teacher's ODE between them; ddim takes one evaluation")
    target_decay: float = Field(0.95, ge=0, lt=1, description="decay of the target network's average; 0: the student")
    distance: DistanceName = Field("pseudo-huber", description="distance of the two ends")
    weighting: WeightingName = Field("uniform", description="weight of the loss over noise levels")
    teacher_free: bool = Field(False, description="consistency training: without the teacher's ODE")
    source: CleanSource = Field(
        "images", description="where clean samples come from: real images, or the teacher's own (pairs)"
    )
    guidance: float = Field(1.0, ge=0, description="guidance weight w of the teacher: uncond + w (cond - uncond)")

    @model_validator(mode="after")
    def _growing(self) -> Self:
        if self.first_levels is not None and self.first_levels > self.levels:
            raise ValueError(f"first_levels {self.first_levels} must be at most levels {self.levels}")
        return self


class Consistency(Method):
    """Student whose every point of a trajectory leads to its end in one step (Song et al. 2023)."""

    name = "consistency"
    Config = ConsistencyConfig
    presets = PRESETS
    caution = (
        "With the paper's uniform weight and pseudo-Huber distance high noise levels drown the low ones in a short "
        "training: --weighting snr+1 --distance l2."
    )
    examples = (
        {"levels": 12, "target_decay": 0.0, "distance": "l2", "weighting": "snr+1"},
        {"teacher_free": True, "weighting": "karras", "first_levels": 2},
        {"source": "pairs", "guidance": 2.0, "weighting": "truncated-snr"},
        {"skip": 4, "solver": "ddim", "distance": "huber"},
    )

    def recipe(self, teacher: Teacher, config: ConsistencyConfig) -> Recipe:
        denoiser = teacher.copy_denoiser()
        boundary = boundary_for(teacher.schedule, float(getattr(denoiser, "sigma_data", 0.5)))
        sampler = ConsistencySampler(levels=(teacher.schedule.t_max,), boundary=boundary)
        loss = ConsistencyLoss(
            denoiser, None if config.teacher_free else teacher, distance_for(teacher, config.distance),
            WEIGHTINGS[config.weighting], growth=Growth(config.first_levels, config.levels, config.target_decay),
            skip=config.skip, solver=config.solver, source=config.source, guidance=config.guidance,
        )  # fmt: skip
        return Recipe(
            StudentGenerator(denoiser, sampler, teacher.spec.shape),
            [loss],
            guidance=None if config.teacher_free else config.guidance,
        )
