"""The method: its settings and its recipe."""

from __future__ import annotations

from pydantic import Field

from distillkit import Method, MethodConfig, Recipe, StudentGenerator, Teacher
from distillkit.diffusion import RenoisingSampler
from distillkit.parts import DistributionMatching, FakeScore, own_rate
from distillkit_dmd2.adversarial import Adversarial
from distillkit_dmd2.critic import Critic
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
        1e-2, ge=0, description="weight of the GAN loss for the critic; 0 turns the GAN off, and no images are needed"
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
    examples = (
        {"gan_weight": 0},
        {"critic_gan_weight": 0},
        {"evaluations": 4, "updates": 1},
        {"guidance": 2.0, "guidance_rescale": 0.7, "level_min": 0.2, "level_max": 0.7},
        {"critic_lr": 1e-3},
    )

    def recipe(self, teacher: Teacher, config: DMD2Config) -> Recipe:
        sampler = RenoisingSampler(levels=teacher.schedule.levels(config.evaluations))
        student = StudentGenerator.from_teacher(teacher, sampler)
        levels, optimizer = (config.level_min, config.level_max), own_rate(config.critic_lr)
        # Either weight at 0 leaves no discriminator: a student would learn nothing from one that is not trained.
        gan = config.gan_weight and config.critic_gan_weight
        critic = (
            Critic(teacher, gan_weight=config.critic_gan_weight, optimizer=optimizer)
            if gan
            else FakeScore.from_teacher(teacher, optimizer=optimizer)
        )
        kl = DistributionMatching(teacher, critic, weight=config.kl_weight, guidance=config.guidance,
                                  rescale=config.guidance_rescale, levels=levels)  # fmt: skip
        adversarial = [Adversarial(critic, weight=config.gan_weight)] if isinstance(critic, Critic) else []
        return Recipe(student, [kl, *adversarial], [critic], student_every=config.updates, guidance=config.guidance)
