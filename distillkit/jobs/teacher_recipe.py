"""Training a teacher: denoising score matching on real images, as one more recipe for the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.objective import Objective
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.schedule import Schedule
from distillkit.contracts.source import Images
from distillkit.contracts.step import Step
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher
from distillkit.counts import Integers
from distillkit.diffusion.schedules import EDMSchedule
from distillkit.errors import UsageError
from distillkit.models.edm.families import Family, describe_network
from distillkit.models.edm2.families import WIDTHS
from distillkit.models.edm2.families import describe_network as describe_edm2
from distillkit.parts.score_matching import (
    Levels,
    evenly_from,
    lognormal_levels,
    noise_levels,
    uncertainty_weighted_error,
)

EDM_TRAINING: Mapping[str, Any] = {
    "duration": "200M",
    "batch": 512,
    "lr": 1e-3,
    "warmup": "5%",
    "optimizer": "adam",
    "weight_decay": 0.0,
    "ema_halflife": "500k",
}
"""EDM's training of CIFAR-10 (Karras et al. 2022, Table 7 and appendix F.2, without augmentation)."""


EDM2_TRAINING: Mapping[str, Any] = {
    "duration": "2147M",
    "batch": 2048,
    "lr": 1e-2,
    "lr_schedule": "inverse-sqrt",
    "lr_decay_from": "6.7%",
    "warmup": "0.5%",
    "optimizer": "adam",
    "beta2": 0.99,
    # The paper's loss is a sum over a sample's numbers and this one a mean, whose gradients are as much smaller.
    "eps": 1e-12,
    "weight_decay": 0.0,
    "ema_halflife": "8%",
    "ema_rampup": 0.09,
}
"""EDM2's training of ImageNet-512, size S (Karras et al. 2024, arXiv 2312.02696), with an exponential average about as
long as its best."""
EDM2_LOSS: Mapping[str, Any] = {"noise_mean": -0.4, "noise_std": 1.0, "label_dropout": 0.0}
"""Its noise levels; labels are not dropped, as other networks guide it."""
EDM2_PIXELS: Mapping[str, Any] = {**EDM2_LOSS, "noise_mean": -0.8, "noise_std": 1.6}
"""Of ImageNet-64."""


LATENT_TRAINING: Mapping[str, Any] = {
    "duration": "400M",
    "batch": 2048,
    "lr": 1e-4,
    "warmup": "5%",
    "ema_halflife": "14.2M",
}
"""Rate, batch and optimiser of CompVis' card of Stable Diffusion 1 (AdamW, warm-up to 1e-4), its average of 0.9999; the
duration is a beginning."""


class NetworkConfig(BaseModel):
    """The network of a teacher; what is not given is the family's own."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    arch: Literal[Family, "edm2"] = Field("ddpmpp", description="network family: ddpmpp, ncsnpp, adm or edm2")
    model_channels: int | None = Field(None, ge=4, description="width of the first level, a multiple of four")
    channel_mult: Integers | None = Field(None, description="width of every level, in multiples: 2,2,2")
    channel_mult_emb: int | None = Field(None, ge=1, description="width of the embedding, in multiples")
    num_blocks: int | None = Field(None, ge=1, description="residual blocks of a level")
    attn_resolutions: Integers | None = Field(None, description="resolutions with self-attention: 16,8; none for none")
    dropout: float | None = Field(
        None, ge=0, lt=1, description="dropout in the residual blocks, while training; 0.1 if none, and 0 for edm2"
    )

    def describe(self, shape: tuple[int, ...], classes: int) -> dict[str, Any]:
        """The network for samples (C, H, W) of so many classes.

        Raises:
            UsageError: when the images are not square or cannot be halved as often as there are levels.
        """
        given: dict[str, Any] = self.model_dump(mode="json", exclude={"arch"}, exclude_none=True)
        if self.arch == "edm2":
            size = {"model_channels": WIDTHS["s"], "dropout": 0.0}
            description = describe_edm2(shape[1], shape[0], classes, {**size, **given})
        else:
            description = describe_network(self.arch, shape[1], shape[0], classes, **{"dropout": 0.1, **given})
        levels = len(description["arguments"]["network"]["channel_mult"])
        if shape[1] != shape[2] or shape[1] % 2 ** (levels - 1):
            raise UsageError(
                f"a network of {levels} levels needs square images whose side is a multiple of {2 ** (levels - 1)}, "
                f"and these are {shape[2]} x {shape[1]}; use --data-resolution or --channel-mult with fewer numbers"
            )
        return description


class LossConfig(BaseModel):
    """The noise levels and labels of denoising score matching."""

    model_config = ConfigDict(extra="forbid")

    noise_levels: Literal["lognormal", "even"] | None = Field(
        None, description="lognormal as EDM, or even over the schedule's own grid; by the schedule if none"
    )
    noise_mean: float = Field(-1.2, description="mean of ln(sigma / alpha), where it is lognormal")
    noise_std: float = Field(1.2, gt=0, description="standard deviation of ln(sigma / alpha), where it is lognormal")
    label_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of labels and prompts left out, so that it can be guided"
    )

    def levels(self, schedule: Schedule) -> Levels:
        """The distribution of noise levels on a schedule."""
        lognormal = isinstance(schedule, EDMSchedule) if self.noise_levels is None else self.noise_levels == "lognormal"
        if lognormal:
            return lognormal_levels(schedule, mean=self.noise_mean, std=self.noise_std)
        return evenly_from(noise_levels(schedule))


class DenoisingScoreMatching(Objective):
    """E lambda(t) |D(x_t, t, c) - x0|^2: with ln(sigma / alpha) ~ N(-1.2, 1.2^2) on EDM's schedule (Karras et al. 2022,
    Eq. 2 and Table 1), and as the plain loss of what the network predicts at even times on others (Ho et al. 2020, Eq.
    14); weighted by the uncertainty that the network learns where it has one (EDM2).

    Labels and prompts are left out at the rate of `label_dropout`, so that the teacher can be guided.
    """

    needs = (Images,)

    def __init__(self, config: LossConfig, teacher: Teacher) -> None:
        super().__init__()
        self.config, self.teacher = config, teacher
        self.levels = config.levels(teacher.schedule)

    def __call__(self, step: Step) -> Tensor:
        images, denoiser = step.images, step.student.denoiser
        t = self.levels(step.uniform("sigma")).to(step.device)
        condition = images.condition
        if condition and self.config.label_dropout:
            dropped = (step.uniform("label dropout") < self.config.label_dropout).to(step.device)
            condition = Condition.where(dropped, self.teacher.conditioner.null(condition), condition)
        denoised = denoiser(denoiser.schedule.add_noise(images.sample, step.normal("noise"), t), t, condition)
        return uncertainty_weighted_error(denoiser, denoised, images.sample, t)


def teacher_recipe(teacher: Teacher, loss: LossConfig | None = None) -> Recipe:
    """Train a copy of `teacher` on real images."""
    return Recipe(StudentGenerator.from_teacher(teacher), [DenoisingScoreMatching(loss or LossConfig(), teacher)])
