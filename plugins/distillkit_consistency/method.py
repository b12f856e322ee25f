"""The method: its settings, its presets and its recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distillkit import Method, MethodConfig, Preset, Recipe, StudentGenerator, Teacher
from distillkit.diffusion import WEIGHTINGS, ConsistencySampler, WeightingName, l2, pseudo_huber
from distillkit_consistency.consistency import ConsistencyLoss


class ConsistencyConfig(MethodConfig):
    """Settings of consistency distillation and training."""

    levels: int = Field(40, ge=2, description="noise levels of the grid on which neighbours are compared")
    target_decay: float = Field(0.95, ge=0, lt=1, description="decay of the target network's average; 0: the student")
    distance: Literal["l2", "pseudo-huber"] = Field("pseudo-huber", description="distance of the two ends")
    weighting: WeightingName = Field("uniform", description="weight of the loss over noise levels")
    teacher_free: bool = Field(False, description="consistency training: without the teacher's ODE")
    source: Literal["images", "pairs"] = Field(
        "images", description="where clean samples come from: real images, or the teacher's own (pairs)"
    )
    guidance: float = Field(1.0, ge=0, description="guidance weight w of the teacher: uncond + w (cond - uncond)")


class Consistency(Method):
    """Student whose every point of a trajectory leads to its end in one step (Song et al. 2023)."""

    name = "consistency"
    Config = ConsistencyConfig
    presets = (
        Preset(
            name="digits",
            teachers=("digits",),
            # With the paper's uniform weight and pseudo-Huber distance, high noise levels drown the low ones that
            # everything is built on, in so short a training.
            settings={"levels": 12, "target_decay": 0.0, "distance": "l2", "weighting": "snr+1"},
            training={
                "batch": 64,
                "lr": 1e-3,
                "lr_schedule": "cosine",
                "optimizer": "adam",
                "weight_decay": 0.0,
                "duration": "100k",
                "ema_halflife": "3k",
                "checkpoint_every": "10k",
                "sample_every": "10k",
                "evaluate_every": "20k",
            },
            source="chosen for two CPU cores and five minutes",
        ),
        Preset(
            name="mixture",
            teachers=("mixture",),
            settings={"levels": 18, "target_decay": 0.0, "distance": "l2", "weighting": "snr+1"},
            training={"batch": 256, "lr": 1e-3, "lr_schedule": "cosine", "duration": "300k", "ema_halflife": "10k",
                      "log_every": "10k", "checkpoint_every": "100k", "sample_every": "100k", "evaluate_every": "50k"},
            source="chosen for seconds on a CPU core",
        ),
        Preset(
            name="cifar10",
            teachers=("edm-cifar10-*",),
            settings={"levels": 18, "target_decay": 0.0},
            training={"batch": 512, "lr": 4e-4, "optimizer": "radam", "weight_decay": 0.0, "duration": "409.6M",
                      "ema_halflife": "3.5M", "log_every": "50k", "checkpoint_every": "2M", "sample_every": "2M",
                      "evaluate_every": "10M"},
            source="Song et al. 2023, 800k iterations; pseudo-Huber distance of Song & Dhariwal 2023 instead of LPIPS",
        ),
        Preset(
            name="imagenet64",
            teachers=("edm-imagenet64",),
            settings={"levels": 40, "target_decay": 0.95},
            training={"batch": 2048, "lr": 8e-6, "optimizer": "radam", "weight_decay": 0.0, "duration": "1228.8M",
                      "ema_halflife": "14M", "precision": "bf16", "float32_attention": True, "log_every": "200k",
                      "checkpoint_every": "10M", "sample_every": "10M", "evaluate_every": "50M"},
            source="Song et al. 2023, 600k iterations; pseudo-Huber distance of Song & Dhariwal 2023 instead of LPIPS",
        ),
    )  # fmt: skip

    def recipe(self, teacher: Teacher, config: ConsistencyConfig) -> Recipe:
        spec = teacher.spec
        sampler = ConsistencySampler(sigmas=(spec.sigma_max,), sigma_min=spec.sigma_min, sigma_data=spec.sigma_data)
        student = StudentGenerator.from_teacher(teacher, sampler)
        loss = ConsistencyLoss(
            student, None if config.teacher_free else teacher,
            {"l2": l2, "pseudo-huber": pseudo_huber}[config.distance], WEIGHTINGS[config.weighting],
            levels=config.levels, decay=config.target_decay, source=config.source, guidance=config.guidance,
        )  # fmt: skip
        return Recipe(student, [loss])
