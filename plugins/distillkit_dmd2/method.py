"""The method: its settings and its recipe."""

from __future__ import annotations

from pydantic import Field

from distillkit import Learner, Method, MethodConfig, Objective, Recipe, StudentGenerator, Teacher
from distillkit.diffusion import RenoisingSampler
from distillkit.parts import (
    R1,
    Adversarial,
    DistributionMatching,
    FakeScore,
    FeaturesOf,
    Gan,
    GanLossName,
    R1Name,
    own_rate,
    score_and_discriminator,
)
from distillkit_dmd2.presets import PRESETS


class DMD2Config(MethodConfig):
    """Settings of DMD2."""

    evaluations: int = Field(1, ge=1, le=64, description="network evaluations of the student, with fresh noise between")
    updates: int = Field(5, ge=1, description="updates of the critic for one of the student (two time-scale rule)")
    kl_weight: float = Field(1.0, gt=0, description="weight of the KL objective")
    gan_weight: float = Field(
        3e-3, ge=0, description="weight of the GAN loss for the student; 0 turns the GAN off, and no images are needed"
    )
    critic_gan_weight: float = Field(
        1e-2,
        ge=0,
        description="weight of the GAN loss for the critic, beside its score matching, where it judges its own "
        "features; 0 turns the GAN off, and no images are needed",
    )
    gan_loss: GanLossName = Field("non-saturating", description="loss of the GAN's two sides")
    gan_features: FeaturesOf = Field("fake score", description="whose bottleneck the discriminator judges")
    gan_level_min: float = Field(0.0, ge=0, lt=1, description="smallest noise level of the GAN, as a share of the grid")
    gan_level_max: float = Field(1.0, gt=0, le=1, description="largest noise level of the GAN, as a share of the grid")
    r1_weight: float = Field(
        0.0, ge=0, description="weight of R1 on the discriminator, beside its loss; 0 turns it off"
    )
    r1: R1Name = Field(
        "approximate",
        description="how R1 is computed: by a finite difference, or exactly at the heads' inputs or at the samples",
    )
    critic_lr: float | None = Field(None, gt=0, le=1, description="learning rate of the critic; the student's if none")
    guidance: float = Field(1.0, ge=0, description="guidance weight w of the real score: uncond + w (cond - uncond)")
    guidance_rescale: float = Field(
        0.0, ge=0, le=1, description="share to which guided predictions keep their size, against over-saturation: 0.7"
    )
    level_min: float = Field(0.02, ge=0, lt=1, description="smallest noise level of the KL, as a share of the grid")
    level_max: float = Field(0.98, gt=0, lt=1, description="largest noise level of the KL, as a share of the grid")


class DMD2(Method):
    """Student in one or a few steps from two scores and a discriminator, without pairs (Yin et al. 2024)."""

    name = "dmd2"
    Config = DMD2Config
    presets = PRESETS
    caution = (
        "Where the critic lags behind the student modes are lost: raise --critic-lr or --updates, or start at less "
        "noise (--start-ratio 2.5); the default GAN weights are ImageNet's and hardly count on small images."
    )
    examples = (
        {"gan_weight": 0},
        {"critic_gan_weight": 0},
        {"evaluations": 4, "updates": 1},
        {"guidance": 2.0, "guidance_rescale": 0.7, "level_min": 0.2, "level_max": 0.7},
        {"gan_loss": "hinge", "gan_level_min": 0.3, "gan_level_max": 0.8, "r1_weight": 0.1, "r1": "features"},
        {"gan_features": "teacher", "critic_lr": 1e-3, "r1_weight": 0.1},
    )

    def recipe(self, teacher: Teacher, config: DMD2Config) -> Recipe:
        sampler = RenoisingSampler(levels=teacher.schedule.levels(config.evaluations))
        student = StudentGenerator.from_teacher(teacher, sampler)
        optimizer, adversarial = own_rate(config.critic_lr), list[Objective]()
        # Either weight at 0 leaves no discriminator: a student would learn nothing from one that is not trained.
        critic_weight = config.critic_gan_weight if config.gan_features == "fake score" else 1.0
        if config.gan_weight and critic_weight:
            fake, discriminator = score_and_discriminator(
                teacher, gan_weight=critic_weight, features=config.gan_features, optimizer=optimizer,
                gan=Gan(config.gan_loss, R1(config.r1_weight, config.r1) if config.r1_weight else None),
                gan_levels=(config.gan_level_min, config.gan_level_max),
            )  # fmt: skip
            adversarial.append(Adversarial(discriminator, weight=config.gan_weight))
            learners: list[Learner] = [fake] if fake is discriminator else [fake, discriminator]
        else:
            learners = [fake := FakeScore.from_teacher(teacher, optimizer=optimizer)]
        kl = DistributionMatching(
            teacher, fake, weight=config.kl_weight, guidance=config.guidance, rescale=config.guidance_rescale,
            levels=(config.level_min, config.level_max),
        )  # fmt: skip
        return Recipe(student, [kl, *adversarial], learners, student_every=config.updates, guidance=config.guidance)
