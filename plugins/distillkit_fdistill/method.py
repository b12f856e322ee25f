"""The method: its settings and its recipe."""

from __future__ import annotations

from pydantic import Field

from distillkit import Method, MethodConfig, Recipe, StudentGenerator, Teacher
from distillkit.diffusion import RenoisingSampler
from distillkit.parts import R1, Adversarial, FeaturesOf, Gan, own_rate, score_and_discriminator
from distillkit_fdistill.divergences import WEIGHTS, DivergenceName
from distillkit_fdistill.f_divergence import FDivergence
from distillkit_fdistill.normalisation import Normalisation
from distillkit_fdistill.presets import PRESETS


class FDistillConfig(MethodConfig):
    """Settings of f-distill."""

    divergence: DivergenceName = Field(
        "jensen-shannon", description="f-divergence from the teacher's samples to the student's; reverse-kl is DMD2"
    )
    evaluations: int = Field(1, ge=1, le=64, description="network evaluations of the student, with fresh noise between")
    updates: int = Field(5, ge=1, description="updates of the critic for one of the student (two time-scale rule)")
    matching_weight: float = Field(1.0, gt=0, description="weight of the divergence's objective")
    gan_weight: float = Field(
        1e-3,
        ge=0,
        description="weight of the GAN loss for the student; at 0 the discriminator gives the ratio and nothing else",
    )
    critic_gan_weight: float = Field(
        1e-2,
        gt=0,
        description="weight of the GAN loss for the critic, beside its score matching, where it judges "
        "its own features",
    )
    gan_features: FeaturesOf = Field("fake score", description="whose bottleneck the discriminator judges")
    r1_weight: float = Field(
        0.0, ge=0, description="weight of R1 on the discriminator, by a finite difference; 0 turns it off"
    )
    ratio_min: float = Field(0.1, gt=0, lt=1, description="smallest density ratio")
    ratio_max: float = Field(20.0, gt=1, le=1e6, description="largest density ratio")
    ratio_bins: int = Field(10, ge=1, le=1000, description="bins of noise levels in which the ratio has mean one")
    ratio_decay: float = Field(0.9, ge=0, lt=1, description="decay of the running means that normalise the weights")
    critic_lr: float | None = Field(None, gt=0, le=1, description="learning rate of the critic; the student's if none")
    guidance: float = Field(1.0, ge=0, description="guidance weight w of the real score: uncond + w (cond - uncond)")
    guidance_rescale: float = Field(
        0.0, ge=0, le=1, description="share to which guided predictions keep their size, against over-saturation: 0.7"
    )
    level_min: float = Field(0.02, ge=0, lt=1, description="smallest noise level of the scores, as a share of the grid")
    level_max: float = Field(0.98, gt=0, lt=1, description="largest noise level of the scores, as a share of the grid")


class FDistill(Method):
    """Student in one or a few steps under any f-divergence: scores weighted by a density ratio (Xu et al. 2025)."""

    name = "f-distill"
    Config = FDistillConfig
    presets = PRESETS
    caution = (
        "As dmd2; and its weights are no better than the discriminator, which leaves few samples with a weight "
        "where it is sure of all."
    )
    examples = (
        {"divergence": "forward-kl", "ratio_min": 0.9, "ratio_max": 1.1, "ratio_decay": 0.5},
        {"evaluations": 4, "updates": 1, "guidance": 2.0, "guidance_rescale": 0.7, "level_min": 0.2, "level_max": 0.7},
        {"gan_features": "teacher", "gan_weight": 0, "critic_lr": 1e-3, "r1_weight": 0.1},
    )

    def recipe(self, teacher: Teacher, config: FDistillConfig) -> Recipe:
        sampler = RenoisingSampler(levels=teacher.schedule.levels(config.evaluations))
        student = StudentGenerator.from_teacher(teacher, sampler)
        critic_weight = config.critic_gan_weight if config.gan_features == "fake score" else 1.0
        fake, discriminator = score_and_discriminator(
            teacher, gan_weight=critic_weight, gan=Gan(r1=R1(config.r1_weight)), gan_levels=(0.0, 1.0),
            features=config.gan_features, optimizer=own_rate(config.critic_lr),
        )  # fmt: skip
        normalisation = Normalisation(WEIGHTS[config.divergence], bins=config.ratio_bins, decay=config.ratio_decay,
                                      limits=(config.ratio_min, config.ratio_max))  # fmt: skip
        matching = FDivergence(
            teacher, fake, discriminator, normalisation, weight=config.matching_weight, guidance=config.guidance,
            rescale=config.guidance_rescale, levels=(config.level_min, config.level_max),
        )  # fmt: skip
        objectives = [matching, Adversarial(discriminator, weight=config.gan_weight)]
        return Recipe(
            student, objectives[: 1 + bool(config.gan_weight)],
            [fake] if fake is discriminator else [fake, discriminator],
            student_every=config.updates, guidance=config.guidance,
        )  # fmt: skip
