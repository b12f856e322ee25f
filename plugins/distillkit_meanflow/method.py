"""The method: its settings and its recipe."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from distillkit import Method, MethodConfig, Recipe, StudentGenerator, Teacher
from distillkit.parts import CleanSource, TangentName, require_teacher_for_guidance, start_time
from distillkit_meanflow.average_velocity import AverageVelocity
from distillkit_meanflow.presets import PRESETS
from distillkit_meanflow.sampler import MeanFlowSampler
from distillkit_meanflow.two_times import TwoTimes


class MeanFlowConfig(MethodConfig):
    """Settings of MeanFlow."""

    level_mean: float = Field(
        -0.4,
        ge=-20,
        le=20,
        description="mean of ln(t / (1 - t)) = ln(sigma / alpha) of both times, the larger of which is t",
    )
    level_std: float = Field(1.0, gt=0, le=20, description="standard deviation of ln(t / (1 - t))")
    end_mean: float | None = Field(
        None, ge=-20, le=20, description="mean of ln(r / (1 - r)), the time that a step leads to; none: both as t"
    )
    end_std: float = Field(1.6, gt=0, le=20, description="standard deviation of ln(r / (1 - r)), with end_mean")
    share: float = Field(0.25, ge=0, le=1, description="share of samples whose two times differ")
    power: float = Field(1.0, ge=0, le=10, description="p of the weight 1 / (|d|^2 + c)^p; 0: squared error")
    constant: float = Field(1e-3, gt=0, le=1e6, description="c of that weight")
    tangent: TangentName = Field(
        "difference", description="how du/dt is computed: by the difference of two passes, with any network, or exactly"
    )
    teacher_free: bool = Field(False, description="training on data alone, without the teacher's velocity")
    source: CleanSource = Field(
        "images", description="where clean samples come from: real images, or the teacher's own (pairs)"
    )
    guidance: float = Field(1.0, ge=0, description="guidance weight w of the teacher: uncond + w (cond - uncond)")

    @model_validator(mode="after")
    def _guided_by_a_teacher(self) -> Self:
        require_teacher_for_guidance(self.guidance, teacher_free=self.teacher_free)
        return self


class MeanFlow(Method):
    """Student of average velocities, which lead along a trajectory in one step (Geng et al. 2025)."""

    name = "meanflow"
    Config = MeanFlowConfig
    presets = PRESETS
    caution = (
        "What one step needs, r near 0 and t near 1, is hardly drawn with the paper's times, and slow to learn: "
        "--end-mean -2 to -4 and a larger --share."
    )
    examples = (
        {"tangent": "jvp", "share": 0.75, "power": 0.75, "guidance": 2.0, "teacher_free": False},
        {"teacher_free": True, "level_mean": -0.6, "level_std": 1.6, "end_mean": -4.0, "end_std": 2.0},
        {"source": "pairs", "share": 1.0, "power": 0.0, "constant": 1e-2},
    )

    def recipe(self, teacher: Teacher, config: MeanFlowConfig) -> Recipe:
        denoiser = TwoTimes(teacher.copy_denoiser())
        sampler = MeanFlowSampler(levels=(start_time(teacher.schedule),))
        ends = None if config.end_mean is None else (config.end_mean, config.end_std)
        objective = AverageVelocity(
            denoiser.schedule, None if config.teacher_free else teacher, guidance=config.guidance,
            times=(config.level_mean, config.level_std), ends=ends, share=config.share, power=config.power,
            constant=config.constant, how=config.tangent, source=config.source,
        )  # fmt: skip
        return Recipe(
            StudentGenerator(denoiser, sampler, teacher.spec.shape),
            [objective],
            guidance=None if config.teacher_free else config.guidance,
        )
