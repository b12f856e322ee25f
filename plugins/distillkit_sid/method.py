"""The method: its settings, its presets and its recipe."""

from __future__ import annotations

from pydantic import Field

from distillkit import Method, MethodConfig, OneStep, OptimizerConfig, Preset, Recipe, StudentGenerator, Teacher
from distillkit_sid.fake_score import FakeScore
from distillkit_sid.score_identity import ScoreIdentity


class SiDConfig(MethodConfig):
    """Settings of SiD."""

    alpha: float = Field(1.2, ge=0, le=2, description="alpha of the loss: 1 leaves the squared difference out")
    sigma_init: float = Field(2.5, gt=0, description="noise level at which the student starts, in data units")
    largest: float = Field(0.8, gt=0, le=1, description="largest noise level of the loss, as a share of the grid")
    guidance: float = Field(1.0, ge=0, description="guidance weight w of the teacher: uncond + w (cond - uncond)")
    fake_lr: float | None = Field(
        None, gt=0, le=1, description="learning rate of the fake score; the student's if none"
    )


class SiD(Method):
    """One-step student by score identity distillation, without data or pairs (Zhou et al. 2024)."""

    name = "sid"
    Config = SiDConfig
    presets = (
        Preset(
            name="digits",
            teachers=("digits",),
            training={"batch": 64, "lr": 2e-4, "beta1": 0.0, "optimizer": "adam", "weight_decay": 0.0,
                      "lr_schedule": "cosine", "warmup": "2k", "duration": "64k", "ema_halflife": "3k",
                      "checkpoint_every": "8k", "sample_every": "8k", "evaluate_every": "16k"},
            source="chosen for two CPU cores and five minutes",
        ),
        Preset(
            name="mixture",
            teachers=("mixture",),
            settings={"alpha": 1.0},
            training={"batch": 64, "lr": 1e-3, "lr_schedule": "cosine", "duration": "150k", "ema_halflife": "10k",
                      "log_every": "10k", "checkpoint_every": "100k", "sample_every": "100k", "evaluate_every": "50k"},
            source="chosen for seconds on a CPU core",
        ),
        Preset(
            name="cifar10",
            teachers=("edm-cifar10-*",),
            training={"batch": 256, "lr": 1e-5, "beta1": 0.0, "optimizer": "adam", "weight_decay": 0.0,
                      "duration": "300M", "ema_halflife": "500k", "log_every": "50k", "checkpoint_every": "2M",
                      "sample_every": "2M", "evaluate_every": "10M"},
            source="Zhou et al. 2024, Table 6, as recalled",
        ),
    )  # fmt: skip

    def recipe(self, teacher: Teacher, config: SiDConfig) -> Recipe:
        student = StudentGenerator.from_teacher(teacher, OneStep(sigma=config.sigma_init))
        fake = FakeScore.from_teacher(
            teacher, optimizer=None if config.fake_lr is None else OptimizerConfig(lr=config.fake_lr, beta1=0.0)
        )
        objective = ScoreIdentity(teacher, fake, alpha=config.alpha, largest=config.largest, guidance=config.guidance)
        return Recipe(student, [objective], [fake])
