"""A GAN beside or in the place of other objectives: the student's side, and what all discriminators share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.contracts.health import Diagnostic
from distillkit.contracts.objective import Objective
from distillkit.contracts.source import Samples
from distillkit.contracts.step import Step
from distillkit.parts.clean import CLEAN, CleanSource
from distillkit.parts.discriminator import GAN_LOSSES, GanLossName, accuracy
from distillkit.parts.gradient_penalty import R1

GAN_DIAGNOSTICS = (
    Diagnostic(
        "critic_accuracy",
        ok=(0.4, 0.95),
        watch=(0.2, 1.0),
        meaning="share of real and generated images that the discriminator tells apart; 0.5 is chance, near 1 the "
        "student no longer learns from it: lower the weights of the GAN terms, or raise --r1-weight",
    ),
    Diagnostic(
        "std_to_images",
        ok=(0.8, 1.25),
        watch=(0.4, 2.0),
        meaning="standard deviation of the student's samples over that of the real images; towards 0 they lose their "
        "variety or contrast, above 1 they are over-saturated, as late in runs with strong guidance: lower it, or use "
        "--guidance-rescale 0.7 where the method has it",
    ),
)
"""Of learners that tell real images from the student's samples."""


class Discriminator(Protocol):
    """A learner that judges noisy samples, real and generated."""

    @property
    def gan(self) -> Gan:
        """Loss, penalty and source of the real samples."""
        ...

    @property
    def head(self) -> nn.Module:
        """Features -> logits (B, N)."""
        ...

    def draw_gan_levels(self, step: Step, purpose: str) -> Tensor:
        """Times (B,) at which samples are judged; one stream for each `purpose`."""
        ...

    def features(self, x: Tensor, noise: Tensor, t: Tensor, condition: Condition) -> list[Tensor]:
        """Of x (B, ...) with noise at t (B,)."""
        ...


class Gan:
    """What all discriminators share.

    Args:
        loss: of both sides.
        r1: the penalty on real samples.
        source: of the real samples: images, or the teacher's own in noise-image pairs.
        same_noise: real samples are judged with the noise and at the levels of the generated ones, so that they alone
            make the difference.
    """

    def __init__(
        self,
        loss: GanLossName = "non-saturating",
        r1: R1 | None = None,
        source: CleanSource = "images",
        *,
        same_noise: bool = False,
    ) -> None:
        self.loss, self.r1, self.source, self.same_noise = GAN_LOSSES[loss], r1 or R1(), source, same_noise

    @property
    def needs(self) -> Sequence[type]:
        """What a discriminator reads of a step: the student's samples, and real ones."""
        return (Samples, CLEAN[self.source])

    @property
    def whole_networks(self) -> str:
        """As `Learner.whole_networks`."""
        twice = self.r1.weight and self.r1.kind == "inputs"
        return "R1 at the samples differentiates a network twice, which networks in parts cannot be" if twice else ""

    def learner_loss(self, discriminator: Discriminator, step: Step, fake: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The discriminator's loss and its penalty, a scalar.

        Args:
            fake: logits (B, N) of the student's samples with `noise` (B, ...) at `t` (B,).
        """
        clean = step[CLEAN[self.source]]
        if not self.same_noise:
            t, noise = discriminator.draw_gan_levels(step, "real/level"), step.normal("real/noise")
        real, penalty = self.r1(
            discriminator, clean.sample, noise, t, clean.condition, lambda: step.normal("real/nearby")
        )
        step.log("critic_accuracy", accuracy(fake, real))
        step.log("std_to_images", step.samples.std() / clean.sample.std())
        return self.loss.discriminator(fake, real) + penalty


class Adversarial(Objective):
    """The generator's loss of D(x_t) with x_t the student's noisy sample (Yin et al. 2024, arXiv 2405.14867, Eq. 4).

    Args:
        discriminator: judges; a learner of the same recipe.
        weight: of this term.
    """

    needs = (Samples,)

    def __init__(self, discriminator: Discriminator, *, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.discriminator = discriminator

    def __call__(self, step: Step) -> Tensor:
        t, noise = self.discriminator.draw_gan_levels(step, "gan/level"), step.normal("gan/noise")
        features = self.discriminator.features(step.samples, noise, t, step.condition)
        return self.discriminator.gan.loss.generator(self.discriminator.head(features))
