"""The method: its settings and its recipe."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from distillkit import Method, MethodConfig, Recipe, StudentGenerator, Teacher
from distillkit.diffusion import ConsistencySampler
from distillkit.parts import (
    CleanSource,
    Neighbours,
    ShrinkingStep,
    StepName,
    StepWeightingName,
    require_teacher_for_guidance,
    start_time,
)
from distillkit_ect.curricula import Continuous, Curriculum, Doubling
from distillkit_ect.presets import PRESETS
from distillkit_ect.tuning import ConsistencyTuning


class ECTConfig(MethodConfig):
    """Settings of ECT and iCT."""

    curriculum: Literal["ect", "ict"] = Field(
        "ect", description="neighbours at continuous levels, ever closer, or on a grid whose levels double"
    )
    stages: int = Field(
        8, ge=1, le=64, description="how many sizes the step between neighbours takes, each shorter (ect)"
    )
    q: float = Field(
        2.0, gt=1, le=1e6, description="factor from one size to the next; the last is about t / q^stages (ect)"
    )
    k: float = Field(8.0, ge=0, le=1e6, description="how much longer the step is where there is no noise (ect)")
    b: float = Field(1.0, ge=0, le=1e6, description="how fast that falls with the noise level (ect)")
    first_levels: int = Field(10, ge=1, le=10_000, description="s0, steps between the levels of the first grid (ict)")
    last_levels: int = Field(1280, ge=1, le=10_000, description="s1, steps between the levels of the last grid (ict)")
    level_mean: float = Field(-1.1, ge=-20, le=20, description="mean of ln(sigma / alpha) of the levels")
    level_std: float = Field(2.0, gt=0, le=20, description="standard deviation of ln(sigma / alpha)")
    c: float | None = Field(
        None, ge=0, le=1e3, description="constant of the pseudo-Huber distance; 0.00054 sqrt(dimensions) if none"
    )
    weighting: StepWeightingName = Field(
        "inverse-step", description="weight of the loss over levels: one over the neighbours' distance, or by the level"
    )
    target_decay: float = Field(0.0, ge=0, lt=1, description="decay of the target network's average; 0: the student")
    teacher_free: bool = Field(True, description="neighbours have the same noise; else the teacher's ODE leads there")
    solver: StepName = Field("ddim", description="step of the teacher's ODE, where it leads; ddim takes one evaluation")
    source: CleanSource = Field(
        "images", description="where clean samples come from: real images, or the teacher's own (pairs)"
    )
    guidance: float = Field(
        1.0, ge=0, description="guidance weight w of the teacher, where its ODE leads: uncond + w (cond - uncond)"
    )

    @model_validator(mode="after")
    def _guided_by_a_teacher(self) -> Self:
        require_teacher_for_guidance(self.guidance, teacher_free=self.teacher_free)
        return self

    @model_validator(mode="after")
    def _growing(self) -> Self:
        if self.curriculum == "ict" and self.first_levels > self.last_levels:
            raise ValueError(f"first_levels {self.first_levels} must be at most last_levels {self.last_levels}")
        return self

    def neighbours(self) -> Curriculum:
        """The curriculum that the settings describe."""
        if self.curriculum == "ict":
            return Doubling(self.first_levels, self.last_levels, self.level_mean, self.level_std)
        return Continuous(ShrinkingStep(self.stages, self.q, self.k, self.b), self.level_mean, self.level_std)


class ECT(Method):
    """Consistency model tuned from the teacher's weights, its steps ever shorter (Geng et al. 2024), or iCT (2023)."""

    name = "ect"
    Config = ECTConfig
    presets = PRESETS
    caution = (
        "As the steps shrink, errors of one level reach the next: where neighbour_gap grows, lower --lr or take fewer "
        "--stages."
    )
    examples = (
        {"curriculum": "ict", "first_levels": 4, "last_levels": 64, "level_mean": -0.8, "level_std": 1.6},
        {"teacher_free": False, "guidance": 2.0, "stages": 4, "q": 4.0, "c": 0.0},
        {"teacher_free": False, "solver": "heun", "source": "pairs", "target_decay": 0.5},
        {"weighting": "karras", "c": 0.06, "k": 4.0, "b": 2.0},
    )

    def recipe(self, teacher: Teacher, config: ECTConfig) -> Recipe:
        denoiser = teacher.copy_denoiser()
        if config.teacher_free:
            neighbours = Neighbours(denoiser, None, decay=config.target_decay)
        else:
            neighbours = Neighbours(
                denoiser, teacher, solver=config.solver, guidance=config.guidance, decay=config.target_decay
            )
        sampler = ConsistencySampler(levels=(start_time(teacher.schedule),), boundary=neighbours.boundary)
        loss = ConsistencyTuning(
            neighbours, config.neighbours(), weighting=config.weighting, c=config.c, source=config.source
        )
        return Recipe(
            StudentGenerator(denoiser, sampler, teacher.spec.shape),
            [loss],
            guidance=None if config.teacher_free else config.guidance,
        )
