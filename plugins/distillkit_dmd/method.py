"""The method: its settings, its presets and its recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distillkit import Method, MethodConfig, OptimizerConfig, Preset, Recipe, StudentGenerator, Teacher
from distillkit_dmd.distribution_matching import DistributionMatching
from distillkit_dmd.fake_score import FakeScore
from distillkit_dmd.regression import Regression


class DMDConfig(MethodConfig):
    """Settings of DMD."""

    kl_weight: float = Field(1.0, ge=0, description="weight of the KL objective; 0 turns it off, and the fake score")
    regression_weight: float = Field(0.25, ge=0, description="weight of the regression objective; 0 turns it off")
    distance: Literal["l2", "pseudo-huber", "lpips"] = Field(
        "lpips", description="distance of the regression objective; lpips needs VGG-16 weights and larger images"
    )
    guidance: float = Field(
        1.0, ge=0, description="guidance weight w of the real score: uncond + w (cond - uncond); 1 is no guidance"
    )
    level_min: float = Field(0.02, ge=0, lt=1, description="smallest noise level of the KL, as a share of the grid")
    level_max: float = Field(0.98, gt=0, lt=1, description="largest noise level of the KL, as a share of the grid")
    fake_lr: float | None = Field(
        None, gt=0, le=1, description="learning rate of the fake score; the student's if none"
    )
    fake_updates: int = Field(1, ge=1, description="updates of the fake score for one of the student")


LONG = {"log_every": "40k", "checkpoint_every": "2M", "sample_every": "2M", "evaluate_every": "10M"}
"""Intervals for trainings of a hundred million images."""

CIFAR10 = {"batch": 392, "lr": 5e-5, "duration": "117.6M", "warmup": "196k", "ema_halflife": "500k", **LONG}


class DMD(Method):
    """One-step student from two scores and a regression on the teacher's noise-image pairs (Yin et al. 2024)."""

    name = "dmd"
    Config = DMDConfig
    presets = (
        Preset(
            name="digits",
            teachers=("digits",),
            # Digits have 17 grey levels. Below sigma 0.08 the teacher's score points at the nearest level, which says
            # nothing about shape; near sigma_max it was hardly trained. The KL keeps to the levels in between.
            settings={
                "kl_weight": 0.1,
                "regression_weight": 1.0,
                "distance": "l2",
                "level_min": 0.2,
                "level_max": 0.7,
            },
            training={
                "batch": 64,
                "lr": 1e-3,
                "lr_schedule": "cosine",
                "warmup": "2k",
                "duration": "64k",
                "ema_halflife": "3k",
                "checkpoint_every": "8k",
                "sample_every": "8k",
                "evaluate_every": "16k",
            },
            pairs={"count": 1024},
            source="tuned on two CPU cores for five minutes",
        ),
        Preset(
            name="mixture",
            teachers=("mixture",),
            settings={"distance": "l2", "regression_weight": 1.0, "fake_updates": 3},
            training={"batch": 64, "lr": 1e-3, "lr_schedule": "cosine", "duration": "150k", "ema_halflife": "10k",
                      "log_every": "10k", "checkpoint_every": "100k", "sample_every": "100k", "evaluate_every": "50k"},
            pairs={"count": 32},
            source="chosen for seconds on a CPU core; few pairs, so that the KL has something to find",
        ),
        Preset(
            name="cifar10 conditional",
            teachers=("edm-cifar10-cond*",),
            settings={"kl_weight": 1.0, "regression_weight": 0.25, "distance": "lpips"},
            training=CIFAR10,
            pairs={"count": 100_000, "steps": 18},
            source="Yin et al. 2024; number of pairs and iterations (300k) recalled",
        ),
        Preset(
            name="cifar10 unconditional",
            teachers=("edm-cifar10-uncond*",),
            settings={"kl_weight": 1.0, "regression_weight": 0.5, "distance": "lpips"},
            training=CIFAR10,
            pairs={"count": 500_000, "steps": 18},
            source="Yin et al. 2024; number of pairs and iterations (300k) recalled",
        ),
        Preset(
            name="imagenet64",
            teachers=("edm-imagenet64",),
            settings={"kl_weight": 1.0, "regression_weight": 0.25, "distance": "lpips"},
            training={
                "batch": 336,
                "lr": 2e-6,
                "duration": "117.6M",
                "warmup": "168k",
                "ema_halflife": "500k",
                "precision": "bf16",
                "float32_attention": True,
                **LONG,
            },
            pairs={"count": 25_000, "steps": 256},
            source="Yin et al. 2024; 350k iterations",
        ),
        Preset(
            name="faces64",
            teachers=("edm-ffhq64*", "edm-afhqv2-64*"),
            settings={"kl_weight": 1.0, "regression_weight": 0.5, "distance": "lpips"},
            training=CIFAR10 | {"batch": 256, "precision": "bf16", "float32_attention": True},
            pairs={"count": 100_000, "steps": 40},
            source="not in the paper: unconditional CIFAR-10's settings, the teacher's own 40 steps; untuned",
        ),
    )  # fmt: skip

    def recipe(self, teacher: Teacher, config: DMDConfig) -> Recipe:
        student = StudentGenerator.from_teacher(teacher)
        objectives: list[DistributionMatching | Regression] = []
        learners = []
        if config.kl_weight:
            fake = FakeScore.from_teacher(
                teacher, optimizer=None if config.fake_lr is None else OptimizerConfig(lr=config.fake_lr)
            )
            learners.append(fake)
            objectives.append(
                DistributionMatching(
                    teacher,
                    fake,
                    weight=config.kl_weight,
                    guidance=config.guidance,
                    levels=(config.level_min, config.level_max),
                )
            )
        if config.regression_weight:
            objectives.append(Regression(config.distance, weight=config.regression_weight))
        return Recipe(student, objectives, learners, student_every=config.fake_updates if config.kl_weight else 1)
