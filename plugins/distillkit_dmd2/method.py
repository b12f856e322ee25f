"""The method: its settings, its presets and its recipe."""

from __future__ import annotations

from pydantic import Field

from distillkit import Method, MethodConfig, Objective, OptimizerConfig, Preset, Recipe, StudentGenerator, Teacher
from distillkit.diffusion import RenoisingSampler, karras_sigmas
from distillkit_dmd.distribution_matching import DistributionMatching
from distillkit_dmd2.critic import Adversarial, Critic


class DMD2Config(MethodConfig):
    """Settings of DMD2."""

    evaluations: int = Field(1, ge=1, le=64, description="network evaluations of the student, with fresh noise between")
    updates: int = Field(5, ge=1, description="updates of the critic for one of the student (two time-scale rule)")
    kl_weight: float = Field(1.0, gt=0, description="weight of the KL objective")
    gan_weight: float = Field(3e-3, ge=0, description="weight of the GAN loss for the student; 0 turns the GAN off")
    critic_gan_weight: float = Field(1e-2, ge=0, description="weight of the GAN loss for the critic")
    critic_lr: float | None = Field(None, gt=0, le=1, description="learning rate of the critic; the student's if none")
    guidance: float = Field(1.0, ge=0, description="guidance weight w of the real score: uncond + w (cond - uncond)")
    level_min: float = Field(0.02, ge=0, lt=1, description="smallest noise level of the KL, as a share of the grid")
    level_max: float = Field(0.98, gt=0, lt=1, description="largest noise level of the KL, as a share of the grid")


class DMD2(Method):
    """Student in one or a few steps from two scores and a discriminator, without pairs (Yin et al. 2024)."""

    name = "dmd2"
    Config = DMD2Config
    presets = (
        Preset(
            name="digits",
            teachers=("digits",),
            settings={"updates": 2, "level_min": 0.2, "level_max": 0.7},
            training={"batch": 64, "lr": 3e-4, "lr_schedule": "cosine", "warmup": "2k", "duration": "60k",
                      "ema_halflife": "3k", "checkpoint_every": "8k", "sample_every": "8k", "evaluate_every": "16k"},
            source="chosen for two CPU cores and five minutes",
        ),
        Preset(
            name="mixture",
            teachers=("mixture",),
            settings={"updates": 3},
            training={"batch": 64, "lr": 1e-3, "lr_schedule": "cosine", "duration": "150k", "ema_halflife": "10k",
                      "log_every": "10k", "checkpoint_every": "100k", "sample_every": "100k", "evaluate_every": "50k"},
            source="chosen for seconds on a CPU core",
        ),
        Preset(
            name="imagenet64",
            teachers=("edm-imagenet64",),
            training={"batch": 280, "lr": 2e-6, "duration": "280M", "ema_halflife": "500k", "precision": "bf16",
                      "float32_attention": True, "log_every": "40k", "checkpoint_every": "2M", "sample_every": "2M",
                      "evaluate_every": "10M"},
            source="Yin et al. 2024 (arXiv 2405.14867): 5 critic updates, GAN weights 3e-3 and 1e-2, batch 7 x 40",
        ),
    )  # fmt: skip

    def recipe(self, teacher: Teacher, config: DMD2Config) -> Recipe:
        spec = teacher.spec
        grid = karras_sigmas(config.evaluations + 1, sigma_min=spec.sigma_min, sigma_max=spec.sigma_max, rho=spec.rho)
        student = StudentGenerator.from_teacher(teacher, RenoisingSampler(sigmas=tuple(grid[:-1].tolist())))
        critic = Critic(
            teacher,
            gan_weight=config.critic_gan_weight if config.gan_weight else 0.0,
            optimizer=None if config.critic_lr is None else OptimizerConfig(lr=config.critic_lr),
        )
        levels = (config.level_min, config.level_max)
        objectives: list[Objective] = [
            DistributionMatching(teacher, critic, weight=config.kl_weight, guidance=config.guidance, levels=levels)
        ]
        if config.gan_weight:
            objectives.append(Adversarial(critic, weight=config.gan_weight))
        return Recipe(student, objectives, [critic], student_every=config.updates)
