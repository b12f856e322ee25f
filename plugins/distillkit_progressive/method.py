"""The method: its settings, its presets and its recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distillkit import Method, MethodConfig, Preset, Recipe, Stage, StudentGenerator, Teacher
from distillkit.diffusion import WEIGHTINGS, EulerSampler, WeightingName
from distillkit_progressive.halving import Halving


class ProgressiveConfig(MethodConfig):
    """Settings of progressive distillation."""

    start_steps: int = Field(512, ge=1, description="student steps of the first stage, halved until `end_steps`")
    end_steps: int = Field(1, ge=1, description="student steps of the last stage")
    last_share: float = Field(2.0, gt=0, description="length of the last two stages, in lengths of the others")
    weighting: WeightingName = Field("truncated-snr", description="weight of the loss over noise levels")
    source: Literal["images", "pairs"] = Field(
        "images", description="where clean samples come from: real images, or the teacher's own (pairs)"
    )

    def steps(self) -> list[int]:
        """Student steps of every stage."""
        counts = [self.start_steps]
        while counts[-1] // 2 >= self.end_steps:
            counts.append(counts[-1] // 2)
        return counts


class Progressive(Method):
    """Student whose step lands where two of its predecessor land, halved down to one (Salimans & Ho 2022)."""

    name = "progressive"
    Config = ProgressiveConfig
    presets = (
        Preset(
            name="digits",
            teachers=("digits",),
            settings={"start_steps": 16},
            training={
                "batch": 64,
                "lr": 1e-3,
                "lr_schedule": "linear",
                "weight_decay": 0.0,
                "duration": "120k",
                "ema_halflife": "2k",
                "checkpoint_every": "10k",
                "sample_every": "10k",
                "evaluate_every": "20k",
            },
            source="chosen for two CPU cores and five minutes",
        ),
        Preset(
            name="mixture",
            teachers=("mixture",),
            settings={"start_steps": 16},
            training={"batch": 256, "lr": 1e-3, "lr_schedule": "cosine", "duration": "300k", "ema_halflife": "10k",
                      "log_every": "10k", "checkpoint_every": "100k", "sample_every": "100k", "evaluate_every": "50k"},
            source="chosen for seconds on a CPU core",
        ),
        Preset(
            name="cifar10",
            teachers=("edm-cifar10-*",),
            settings={"start_steps": 1024},
            training={"batch": 128, "lr": 2e-4, "lr_schedule": "linear", "weight_decay": 0.0, "duration": "83.2M",
                      "ema_halflife": "500k", "log_every": "20k", "checkpoint_every": "1M", "sample_every": "1M",
                      "evaluate_every": "5M"},
            source="Salimans & Ho 2022: 50k iterations a halving, 100k for the last two",
        ),
        Preset(
            name="imagenet64",
            teachers=("edm-imagenet64",),
            settings={"start_steps": 512},
            training={"batch": 2048, "lr": 1e-4, "lr_schedule": "linear", "weight_decay": 0.0, "duration": "1228.8M",
                      "ema_halflife": "5M", "precision": "bf16", "float32_attention": True, "log_every": "200k",
                      "checkpoint_every": "10M", "sample_every": "10M", "evaluate_every": "50M"},
            source="Salimans & Ho 2022: 50k iterations a halving, 100k for the last two",
        ),
    )  # fmt: skip

    def recipe(self, teacher: Teacher, config: ProgressiveConfig) -> Recipe:
        spec, counts = teacher.spec, config.steps()
        samplers = [
            EulerSampler.karras(n, sigma_min=spec.sigma_min, sigma_max=spec.sigma_max, rho=spec.rho) for n in counts
        ]
        stages = [
            Stage(f"{n} steps", share=config.last_share if k >= len(counts) - 2 else 1.0, sampler=sampler)
            for k, (n, sampler) in enumerate(zip(counts, samplers, strict=True))
        ]
        student = StudentGenerator.from_teacher(teacher, samplers[0])
        return Recipe(student, [Halving(student, WEIGHTINGS[config.weighting], source=config.source)], stages=stages)
