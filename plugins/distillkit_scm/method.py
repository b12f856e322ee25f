"""The method: its settings and its recipe."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from distillkit import Method, MethodConfig, Recipe, StudentGenerator, Teacher
from distillkit.diffusion import ConsistencySampler, DenoiserBoundary
from distillkit.parts import CleanSource, TangentName, own_rate, require_teacher_for_guidance, start_time
from distillkit_scm.continuous import ContinuousConsistency
from distillkit_scm.presets import PRESETS
from distillkit_scm.tangents import Tangents
from distillkit_scm.weight import AdaptiveWeight


class SCMConfig(MethodConfig):
    """Settings of sCM."""

    level_mean: float = Field(-1.0, ge=-20, le=20, description="mean of ln(sigma / alpha), the noise levels drawn")
    level_std: float = Field(1.4, gt=0, le=20, description="standard deviation of ln(sigma / alpha)")
    tangent_warmup: float = Field(
        0.025, ge=0, le=1, description="share of the training in which the tangent's unstable term comes in"
    )
    tangent_constant: float = Field(
        0.1, gt=0, le=1e6, description="c of the normalised tangent g / (|g| + c), |g| per number of a sample"
    )
    tangent: TangentName = Field(
        "difference", description="how dF/dt is computed: by the difference of two passes, with any network, or exactly"
    )
    adaptive: bool = Field(True, description="learn the loss's weight over noise levels")
    weight_lr: float | None = Field(
        None, gt=0, le=1, description="learning rate of that weight's network; the student's if none"
    )
    teacher_free: bool = Field(False, description="sCT: consistency training, without the teacher's velocity")
    source: CleanSource = Field(
        "images", description="where clean samples come from: real images, or the teacher's own (pairs)"
    )
    guidance: float = Field(1.0, ge=0, description="guidance weight w of the teacher: uncond + w (cond - uncond)")

    @model_validator(mode="after")
    def _guided_by_a_teacher(self) -> Self:
        require_teacher_for_guidance(self.guidance, teacher_free=self.teacher_free)
        return self


class SCM(Method):
    """Consistency student trained in continuous time, by the tangent of its trajectories (Lu & Song 2024)."""

    name = "scm"
    Config = SCMConfig
    presets = PRESETS
    caution = (
        "The paper's levels hardly reach the one where students start, so that one evaluation is worse than two in a "
        "short training: --level-mean -0.5 to 0, a lower --start-ratio; --tangent-warmup 0.25 or more keeps it stable."
    )
    examples = (
        {"tangent": "jvp", "guidance": 2.0, "tangent_warmup": 0.5},
        {"teacher_free": True, "level_mean": -0.5, "level_std": 1.0, "tangent_warmup": 0.0},
        {"source": "pairs", "adaptive": False, "tangent_constant": 1.0},
        {"weight_lr": 1e-2},
    )

    def recipe(self, teacher: Teacher, config: SCMConfig) -> Recipe:
        sampler = ConsistencySampler(levels=(start_time(teacher.schedule),), boundary=DenoiserBoundary())
        student = StudentGenerator.from_teacher(teacher, sampler)
        tangents = Tangents(
            student.denoiser, None if config.teacher_free else teacher, guidance=config.guidance,
            mean=config.level_mean, std=config.level_std, warmup=config.tangent_warmup,
            constant=config.tangent_constant, how=config.tangent, source=config.source,
        )  # fmt: skip
        adaptive = AdaptiveWeight(tangents, optimizer=own_rate(config.weight_lr)) if config.adaptive else None
        return Recipe(
            student,
            [ContinuousConsistency(tangents, adaptive)],
            [adaptive] if adaptive else [],
            guidance=None if config.teacher_free else config.guidance,
        )
