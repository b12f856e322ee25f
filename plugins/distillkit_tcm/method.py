"""The method: its settings and its recipe."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from distillkit import Method, MethodConfig, Recipe, Stage, StudentGenerator, Teacher
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
from distillkit_tcm.levels import TruncatedRange, WholeRange
from distillkit_tcm.presets import PRESETS
from distillkit_tcm.truncated import FIRST, TRUNCATED, TruncatedConsistency


class TCMConfig(MethodConfig):
    """Settings of truncated consistency models."""

    first_share: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="share of the training for the first stage; 0 where --student is a consistency model",
    )
    boundary: float = Field(
        1.0, gt=0, le=1e6, description="t' as sigma / alpha: the second stage trains above it alone"
    )
    boundary_weight: float = Field(0.1, ge=0, le=1e6, description="weight w_b of the loss at t'")
    boundary_share: float = Field(0.25, gt=0, lt=1, description="share rho of a batch that is at t'")
    truncated_mean: float = Field(0.0, ge=-20, le=20, description="second stage: centre of ln(sigma / alpha)")
    truncated_std: float = Field(0.2, gt=0, le=20, description="second stage: scale of ln(sigma / alpha)")
    df: float = Field(
        0.01, ge=1e-3, le=100, description="second stage: degrees of freedom of Student's t; the fewer, the more noise"
    )
    stages: int = Field(
        10, ge=1, le=64, description="how many sizes the step between neighbours takes in the first stage"
    )
    q: float = Field(2.0, gt=1, le=1e6, description="factor from one size to the next")
    k: float = Field(8.0, ge=0, le=1e6, description="how much longer the step is where there is no noise")
    b: float = Field(1.0, ge=0, le=1e6, description="how fast that falls with the noise level")
    level_mean: float = Field(-1.1, ge=-20, le=20, description="first stage: mean of ln(sigma / alpha)")
    level_std: float = Field(2.0, gt=0, le=20, description="first stage: standard deviation of ln(sigma / alpha)")
    c: float | None = Field(
        None, ge=0, le=1e3, description="constant of the pseudo-Huber distance; 0.00054 sqrt(dimensions) if none"
    )
    weighting: StepWeightingName = Field(
        "inverse-step", description="weight of the loss over levels: one over the neighbours' distance, or by the level"
    )
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


class TCM(Method):
    """Consistency model that spends its second half on the noisy levels alone (Lee et al. 2024)."""

    name = "tcm"
    Config = TCMConfig
    presets = PRESETS
    caution = (
        "Short steps carry what is learnt at the boundary slowly to the noise, and long before that the loss at the "
        "boundary drowns the rest: in short trainings take a larger --truncated-std and --df."
    )
    examples = (
        {"first_share": 0.0, "boundary": 2.0, "boundary_share": 0.3, "boundary_weight": 1.0, "stages": 1},
        {
            "first_share": 0.0,
            "teacher_free": False,
            "guidance": 2.0,
            "truncated_mean": 0.5,
            "df": 2.0,
            "stages": 1,
            "q": 4.0,
            "k": 4.0,
        },
        {"teacher_free": False, "solver": "heun", "source": "pairs", "weighting": "karras", "c": 0.06},
    )

    def recipe(self, teacher: Teacher, config: TCMConfig) -> Recipe:
        denoiser = teacher.copy_denoiser()
        if config.teacher_free:
            neighbours = Neighbours(denoiser, None)
        else:
            neighbours = Neighbours(denoiser, teacher, solver=config.solver, guidance=config.guidance)
        sampler = ConsistencySampler(levels=(start_time(teacher.schedule),), boundary=neighbours.boundary)
        step = ShrinkingStep(config.stages, config.q, config.k, config.b)
        truncated = TruncatedRange(
            step, config.boundary, config.boundary_share, config.truncated_mean, config.truncated_std, config.df
        )
        whole = WholeRange(step, config.level_mean, config.level_std) if config.first_share else None
        loss = TruncatedConsistency(
            neighbours, denoiser, whole, truncated,
            boundary_weight=config.boundary_weight, weighting=config.weighting, c=config.c, source=config.source,
        )  # fmt: skip
        stages = [Stage(FIRST, share=config.first_share), Stage(TRUNCATED, share=1 - config.first_share)]
        return Recipe(
            StudentGenerator(denoiser, sampler, teacher.spec.shape),
            [loss],
            stages=[stage for stage in stages if stage.share],
            guidance=None if config.teacher_free else config.guidance,
        )
