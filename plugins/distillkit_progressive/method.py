"""The method: its settings and its recipe."""

from __future__ import annotations

import math
from typing import Self

from pydantic import Field, model_validator

from distillkit import Method, MethodConfig, Recipe, Stage, StudentGenerator, Teacher
from distillkit.diffusion import WEIGHTINGS, EulerSampler, WeightingName
from distillkit.parts import CleanSource
from distillkit_progressive.halving import Halving
from distillkit_progressive.presets import PRESETS

GUIDED = (
    "the first stage halves the guided teacher, and a student that goes on has its guidance in its weights already: "
    "add --guidance 1"
)


class ProgressiveConfig(MethodConfig):
    """Settings of progressive distillation."""

    start_steps: int = Field(512, ge=1, description="student steps of the first stage, halved until `end_steps`")
    end_steps: int = Field(1, ge=1, description="student steps of the last stage")
    last_share: float = Field(2.0, gt=0, description="length of the last two stages, in lengths of the others")
    weighting: WeightingName = Field("truncated-snr", description="weight of the loss over noise levels")
    source: CleanSource = Field(
        "images", description="where clean samples come from: real images, or the teacher's own (pairs)"
    )

    guidance: float = Field(
        1.0, ge=0, description="guidance weight w of the teacher in the first stage: uncond + w (cond - uncond)"
    )

    @model_validator(mode="after")
    def _halves(self) -> Self:
        halvings, rest = divmod(self.start_steps, self.end_steps)
        if rest or halvings & (halvings - 1) or not halvings:
            likely = self.end_steps * 2 ** max(0, round(math.log2(self.start_steps / self.end_steps)))
            raise ValueError(
                f"start_steps {self.start_steps} does not come to end_steps {self.end_steps} by halvings alone; "
                f"{likely} does"
            )
        return self

    def steps(self) -> list[int]:
        """Student steps of every stage."""
        counts = [self.start_steps]
        while counts[-1] > self.end_steps:
            counts.append(counts[-1] // 2)
        return counts


class Progressive(Method):
    """Student whose step lands where two of its predecessor land, halved down to one (Salimans & Ho 2022)."""

    name = "progressive"
    Config = ProgressiveConfig
    presets = PRESETS
    caution = (
        "Every halving inherits the errors of the one before, so that one step is much worse than two or four: "
        "--end-steps 4."
    )
    examples = (
        {"start_steps": 4, "end_steps": 2, "last_share": 1.0},
        {"start_steps": 2, "source": "pairs", "weighting": "snr+1"},
        {"start_steps": 1, "weighting": "uniform", "guidance": 2.0},
    )

    def recipe(self, teacher: Teacher, config: ProgressiveConfig) -> Recipe:
        counts = config.steps()
        stages = [
            Stage(
                f"{steps} steps" if steps > 1 else "1 step",
                share=config.last_share if k >= len(counts) - 2 else 1.0,
                sampler=EulerSampler.on_grid(steps, teacher.schedule),
            )
            for k, steps in enumerate(counts)
        ]
        student = StudentGenerator.from_teacher(teacher, stages[0].sampler)
        halving = Halving(
            student, WEIGHTINGS[config.weighting], source=config.source, teacher=teacher, guidance=config.guidance
        )
        return Recipe(
            student,
            [halving],
            stages=stages,
            guidance=config.guidance,
            starts_as_teacher=GUIDED if config.guidance != 1 else "",
        )
