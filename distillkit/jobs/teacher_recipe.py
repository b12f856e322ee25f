"""Training a teacher: denoising score matching on real images, as one more recipe for the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.objective import Objective
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.sampler import OneStep
from distillkit.contracts.step import Step
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.diffusion.schedules import lognormal_sigmas, score_matching_loss
from distillkit.errors import UsageError
from distillkit.models.build import build_denoiser
from distillkit.models.edm.families import Family, describe_network


def parse_numbers(value: Any) -> Any:
    """'2,2,2' -> [2, 2, 2], 'none' -> []; other values pass through to pydantic."""
    if not isinstance(value, str):
        return value
    return [] if value.strip().lower() in ("", "none") else [part.strip() for part in value.split(",")]


Numbers = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(parse_numbers)]
"""Whole numbers; text such as '2,2,2' is understood."""

DIGITS_TRAINING: Mapping[str, Any] = {
    "duration": "1.5M",
    "batch": 256,
    "lr": 3e-3,
    "lr_schedule": "cosine",
    "warmup": "25k",
    "optimizer": "adam",
    "weight_decay": 0.0,
    "ema_halflife": "100k",
    "log_every": "25k",
    "checkpoint_every": "100k",
    "evaluate_every": "500k",
    "sample_every": "500k",
}
"""The training of the shipped weights."""

EDM_TRAINING: Mapping[str, Any] = {
    "duration": "200M",
    "batch": 512,
    "lr": 1e-3,
    "warmup": "10M",
    "optimizer": "adam",
    "weight_decay": 0.0,
    "ema_halflife": "500k",
    "log_every": "50k",
    "checkpoint_every": "2M",
    "evaluate_every": "10M",
    "sample_every": "2M",
}
"""EDM's training of CIFAR-10 (Karras et al. 2022, appendix F.2, without augmentation)."""


class NetworkConfig(BaseModel):
    """The network of a teacher; what is not given is the family's own."""

    model_config = ConfigDict(extra="forbid")

    arch: Family = Field("ddpmpp", description="network family: ddpmpp, ncsnpp or adm")
    model_channels: int | None = Field(None, ge=4, description="width of the first level, a multiple of four")
    channel_mult: Numbers | None = Field(None, description="width of every level, in multiples: 2,2,2")
    channel_mult_emb: int | None = Field(None, ge=1, description="width of the embedding, in multiples")
    num_blocks: int | None = Field(None, ge=1, description="residual blocks of a level")
    attn_resolutions: Numbers | None = Field(None, description="resolutions with self-attention: 16,8; none for none")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout in the residual blocks, while training")

    def describe(self, shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
        """The network for samples (C, H, W) of so many classes.

        Raises:
            UsageError: when the images are not square or cannot be halved as often as there are levels.
        """
        arguments: dict[str, Any] = self.model_dump(mode="json", exclude={"arch"}, exclude_none=True)
        description = describe_network(self.arch, shape[1], shape[0], classes, **arguments)
        levels = len(description["arguments"]["channel_mult"])
        if shape[1] != shape[2] or shape[1] % 2 ** (levels - 1):
            raise UsageError(
                f"a network of {levels} levels needs square images whose side is a multiple of {2 ** (levels - 1)}, "
                f"and these are {shape[2]} x {shape[1]}; use --data-resolution or --channel-mult with fewer numbers"
            )
        return description


class LossConfig(BaseModel):
    """The noise levels and labels of denoising score matching."""

    model_config = ConfigDict(extra="forbid")

    noise_mean: float = Field(-1.2, description="mean of ln sigma")
    noise_std: float = Field(1.2, gt=0, description="standard deviation of ln sigma")
    label_dropout: float = Field(0.1, ge=0, lt=1, description="share of labels left out, so that it can be guided")


class DenoisingScoreMatching(Objective):
    """E lambda(sigma) |D(x0 + sigma n; sigma, c) - x0|^2, ln sigma ~ N(-1.2, 1.2^2) (Karras et al. 2022, Eq. 2).

    Labels are left out at the rate of `label_dropout`, so that the teacher can be guided.
    """

    needs = ("images",)

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config

    def __call__(self, step: Step) -> Tensor:
        images = step.images
        level = lognormal_sigmas(step.uniform("sigma"), mean=self.config.noise_mean, std=self.config.noise_std)
        sigma = level.to(step.device)
        condition = images.condition
        if condition.labels is not None and self.config.label_dropout:
            dropped = (step.uniform("label dropout") < self.config.label_dropout).to(step.device)
            condition = Condition(labels=torch.where(dropped, -1, condition.labels))
        noisy = images.sample + sigma.view(-1, 1, 1, 1) * step.normal("noise")
        denoised = step.student.denoiser(noisy, sigma, condition)
        return score_matching_loss(denoised, images.sample, sigma, step.student.spec.sigma_data)


def fresh_teacher(spec: TeacherSpec, seed: int) -> Teacher:
    """A teacher with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser: Denoiser = build_denoiser(spec.network)
    return Teacher(denoiser, spec)


def teacher_recipe(teacher: Teacher, loss: LossConfig | None = None) -> Recipe:
    """Train a copy of `teacher` on real images."""
    student = StudentGenerator.from_teacher(teacher, OneStep(sigma=teacher.spec.sigma_max))
    return Recipe(student, [DenoisingScoreMatching(loss or LossConfig())])
