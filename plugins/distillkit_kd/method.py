"""The method: its settings, its presets, its objective and its recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from distillkit import Method, MethodConfig, Objective, Preset, Recipe, Step, StudentGenerator, Teacher
from distillkit.diffusion import Distance, l2, pseudo_huber


class TrajectoryEndpoint(Objective):
    """distance(G(z, c), y) on noise-image pairs (z, c, y) of the teacher's ODE (Luhman & Luhman 2021, Eq. 6)."""

    needs = ("pairs", "pair_samples")

    def __init__(self, distance: Distance) -> None:
        super().__init__()
        self.distance = distance

    def __call__(self, step: Step) -> Tensor:
        return self.distance(step.pair_samples, step.pairs.sample).mean()


class KDConfig(MethodConfig):
    """Settings of knowledge distillation."""

    distance: Literal["l2", "pseudo-huber"] = Field("l2", description="distance to the teacher's sample")


class KnowledgeDistillation(Method):
    """One-step student that regresses the teacher's samples from their noise (Luhman & Luhman 2021)."""

    name = "kd"
    Config = KDConfig
    presets = (
        Preset(
            name="digits",
            teachers=("digits",),
            training={
                "batch": 64,
                "lr": 1e-3,
                "lr_schedule": "cosine",
                "warmup": "2k",
                "duration": "128k",
                "ema_halflife": "3k",
                "checkpoint_every": "16k",
                "sample_every": "16k",
                "evaluate_every": "32k",
            },
            pairs={"count": 4096},
            source="chosen for two CPU cores and five minutes",
        ),
        Preset(
            name="mixture",
            teachers=("mixture",),
            training={"batch": 256, "lr": 1e-3, "lr_schedule": "cosine", "duration": "500k", "ema_halflife": "10k",
                      "log_every": "10k", "checkpoint_every": "100k", "sample_every": "100k", "evaluate_every": "50k"},
            pairs={"count": 4096},
            source="chosen for seconds on a CPU core",
        ),
        Preset(
            name="cifar10",
            teachers=("edm-cifar10-*",),
            training={"batch": 256, "lr": 2e-4, "duration": "51.2M", "ema_halflife": "500k", "log_every": "25k",
                      "checkpoint_every": "2M", "sample_every": "2M", "evaluate_every": "10M"},
            pairs={"count": 1_000_000, "steps": 18},
            source="Luhman & Luhman 2021: a million pairs; the rest chosen here, untuned",
        ),
    )  # fmt: skip

    def recipe(self, teacher: Teacher, config: KDConfig) -> Recipe:
        distance = {"l2": l2, "pseudo-huber": pseudo_huber}[config.distance]
        return Recipe(StudentGenerator.from_teacher(teacher), [TrajectoryEndpoint(distance)])
