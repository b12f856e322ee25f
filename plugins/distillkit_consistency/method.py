"""The method: its settings and its recipe."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from distillkit import Method, MethodConfig, Recipe, StudentGenerator, Teacher, UsageError, with_guidance_input
from distillkit.diffusion import WEIGHTINGS, ConsistencySampler, WeightingName, boundary_for
from distillkit.parts import CleanSource, DistanceName, StepName, distance_for, require_teacher_for_guidance
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
    guidance: float = Field(
        1.0, ge=0,
        description="guidance weight w of the teacher: uncond + w (cond - uncond); where weights are drawn, "
        "the one that the student is sampled with unless another is asked for",
    )  # fmt: skip
    guidance_min: float = Field(1.0, ge=0, description="smallest of the guidance weights that are drawn")
    guidance_max: float = Field(
        0.0, ge=0, le=1e6,
        description="largest of the guidance weights that are drawn, one for every sample, which the student takes as "
        "an input (LCM); 0: one weight for all, and no input",
    )  # fmt: skip

    @property
    def drawn(self) -> tuple[float, float] | None:
        """The range of guidance weights that are drawn."""
        return (self.guidance_min, self.guidance_max) if self.guidance_max else None

    @model_validator(mode="after")
    def _within(self) -> Self:
        if "guidance_min" in self.model_fields_set and "guidance_max" not in self.model_fields_set:
            raise ValueError(
                f"guidance_min {self.guidance_min:g} draws nothing without guidance_max, the largest of the weights"
            )
        if self.guidance_max and self.guidance_min > self.guidance_max:
            raise ValueError(f"guidance_min {self.guidance_min:g} must be at most guidance_max {self.guidance_max:g}")
        if self.guidance_max and not self.guidance_min <= self.guidance <= self.guidance_max:
            raise ValueError(
                f"guidance {self.guidance:g}, which the student is sampled with, is outside of the weights that are "
                f"drawn, {self.guidance_min:g} to {self.guidance_max:g} (guidance_max 0 draws none)"
            )
        if self.guidance_max and self.teacher_free:
            raise ValueError("guidance_max is of the teacher, which teacher_free leaves out")
        require_teacher_for_guidance(self.guidance, teacher_free=self.teacher_free)
        return self

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
        denoiser, drawn = teacher.copy_denoiser(), config.drawn
        embedded = teacher.denoiser.takes_guidance
        if drawn:
            denoiser = with_guidance_input(denoiser)
            if not embedded and not teacher.guidable:
                raise UsageError(
                    f"guidance_max {config.guidance_max:g}: the teacher {teacher.spec.name} has no unconditional "
                    "prediction to guide against, and no input of guidance"
                )
        boundary = boundary_for(teacher.schedule, float(getattr(denoiser, "sigma_data", 0.5)))
        sampler = ConsistencySampler(
            levels=(teacher.schedule.t_max,),
            boundary=boundary,
            guidance=config.guidance if drawn else None,
            guidance_range=drawn,
        )
        loss = ConsistencyLoss(
            denoiser, None if config.teacher_free else teacher, distance_for(teacher, config.distance),
            WEIGHTINGS[config.weighting], growth=Growth(config.first_levels, config.levels, config.target_decay),
            skip=config.skip, solver="ddim" if config.teacher_free else config.solver, source=config.source,
            guidance=config.guidance, drawn=drawn,
        )  # fmt: skip
        # A weight that is an input of the teacher's network is no classifier-free guidance.
        guidance = 1.0 if drawn and embedded else config.guidance
        return Recipe(
            StudentGenerator(denoiser, sampler, teacher.spec.shape),
            [loss],
            guidance=None if config.teacher_free else guidance,
        )
