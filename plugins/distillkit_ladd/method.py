"""The method: its settings and its recipe. Its learner and its objective are parts that GANs share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distillkit import Method, MethodConfig, Recipe, StudentGenerator, Teacher
from distillkit.diffusion import RenoisingSampler
from distillkit.parts import (
    R1,
    Adversarial,
    CleanSource,
    Gan,
    GanLossName,
    LatentDiscriminator,
    R1Name,
    lognormal_levels,
    own_rate,
)
from distillkit_ladd.presets import PRESETS


class LADDConfig(MethodConfig):
    """Settings of LADD."""

    evaluations: int = Field(1, ge=1, le=64, description="network evaluations of the student, with fresh noise between")
    updates: int = Field(1, ge=1, description="updates of the discriminator for one of the student")
    depths: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0.25, 0.5, 0.75),
        min_length=1,
        max_length=1000,
        description="where the teacher's features are taken, as shares of its blocks; each block has a head",
    )
    source: CleanSource = Field(
        "pairs", description="real samples: the teacher's own, from noise-image pairs, or real images"
    )
    gan_loss: GanLossName = Field("hinge", description="loss of the GAN's two sides")
    level_mean: float = Field(
        1.0, ge=-10, le=10, description="mean of ln(sigma / alpha) of what is judged: structure above 0, texture below"
    )
    level_std: float = Field(1.0, gt=0, le=10, description="standard deviation of ln(sigma / alpha) of what is judged")
    r1_weight: float = Field(1e-3, ge=0, description="weight of R1 on the discriminator; 0 turns it off")
    r1: R1Name = Field(
        "features",
        description="how R1 is computed: by a finite difference, or exactly at the heads' inputs or at the samples",
    )
    discriminator_lr: float | None = Field(
        None, gt=0, le=1, description="learning rate of the discriminator; the student's if none"
    )


class LADD(Method):
    """Student in one or a few steps by a discriminator on the teacher's own features at several depths, without a
    distillation loss (Sauer et al. 2024)."""

    name = "ladd"
    Config = LADDConfig
    presets = PRESETS
    caution = (
        "A GAN alone: a discriminator at chance from the start (critic_accuracy 0.5) lets the student drift, raise "
        "--discriminator-lr or --updates, or change --level-mean; one far ahead (near 1) costs variety, raise "
        "--r1-weight."
    )
    examples = (
        {"source": "images", "gan_loss": "non-saturating", "r1": "approximate"},
        {"evaluations": 4, "updates": 2, "depths": (0.5,), "level_mean": 0.0, "discriminator_lr": 1e-3, "r1_weight": 0},
    )

    def recipe(self, teacher: Teacher, config: LADDConfig) -> Recipe:
        sampler = RenoisingSampler(levels=teacher.schedule.levels(config.evaluations))
        student = StudentGenerator.from_teacher(teacher, sampler)
        # A logit-normal time of a flow is a log-normal ratio: t = sigmoid(m + s z), sigma / alpha = exp(m + s z).
        levels = lognormal_levels(teacher.schedule, mean=config.level_mean, std=config.level_std)
        discriminator = LatentDiscriminator(
            teacher, teacher.denoiser.layers_at(config.depths), levels=levels,
            gan=Gan(config.gan_loss, R1(config.r1_weight, config.r1) if config.r1_weight else None, config.source),
            optimizer=own_rate(config.discriminator_lr),
        )  # fmt: skip
        return Recipe(student, [Adversarial(discriminator)], [discriminator], student_every=config.updates)
