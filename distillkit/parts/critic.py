"""Learners that tell real images from the student's samples: by a fake score's features, or by the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.contracts.learner import Learner, OptimizerConfig
from distillkit.contracts.step import Step
from distillkit.contracts.teacher import Teacher
from distillkit.parts.adversarial import GAN_DIAGNOSTICS, Gan
from distillkit.parts.discriminator import BOTTLENECK, DiscriminatorHead, head_for, place_head_for
from distillkit.parts.score_matching import FakeScore, Levels, evenly_from, times_between, weighted_error

FeaturesOf = Literal["fake score", "teacher"]


class Critic(FakeScore):
    """A fake score that is a discriminator too: denoising score matching on the student's samples, plus `gan_weight`
    times the discriminator's loss on equally noisy inputs (Yin et al. 2024, arXiv 2405.14867, section 4.3).

    D is a small head on the denoiser's bottleneck; passes that need the logits alone end there.

    Args:
        teacher: whose copy it starts as.
        gan_weight: of the discriminator's loss.
        gan: see `Gan`.
        levels: of the score matching; see `FakeScore`.
        gan_levels: of what is judged; by default the student's samples are judged in the score matching's own pass.
        head: makes the head for features of a shape.
        optimizer: see `Learner`.
    """

    name = "critic"
    diagnostics = GAN_DIAGNOSTICS

    def __init__(
        self,
        teacher: Teacher,
        *,
        gan_weight: float,
        gan: Gan | None = None,
        levels: Levels | None = None,
        gan_levels: Levels | None = None,
        head: Callable[[Sequence[int]], nn.Module] = head_for,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(teacher.copy_denoiser(), levels, optimizer=optimizer)
        self.gan_weight, self.gan, self.gan_levels = gan_weight, gan or Gan(), gan_levels
        self.needs, self.whole_networks = self.gan.needs, self.gan.whole_networks
        self.head = DiscriminatorHead.on(self.denoiser, teacher, head=head)

    def draw_gan_levels(self, step: Step, purpose: str) -> Tensor:
        """Times (B,) on the step's device."""
        return (self.gan_levels or self.levels)(step.uniform(purpose)).to(step.device, non_blocking=True)

    def features(self, x: Tensor, noise: Tensor, t: Tensor, condition: Condition) -> list[Tensor]:
        """Of x (B, ...) with noise at t (B,)."""
        return self.denoiser.features(self.denoiser.schedule.add_noise(x, noise, t), t, condition)

    def judged(self, noisy: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Denoised x_t (B, ...), and its logits (B, N), in one evaluation."""
        denoised, features = self.denoiser.with_features(noisy, t, condition)
        return denoised, self.head(features)

    def loss(self, step: Step) -> Tensor:
        x, condition = step.samples.detach(), step.condition
        t, noise = self.draw_levels(step, "fake/level"), step.normal("fake/noise")
        noisy = self.denoiser.schedule.add_noise(x, noise, t)
        weight = self.denoiser.loss_weight(t)
        if self.gan_levels is None:
            denoised, fake = self.judged(noisy, t, condition)
        else:
            denoised = self.denoiser(noisy, t, condition)
            t, noise = self.draw_gan_levels(step, "judged/level"), step.normal("judged/noise")
            fake = self.head(self.features(x, noise, t, condition))
        matching = weighted_error(denoised, x, weight)
        return matching + self.gan_weight * self.gan.learner_loss(self, step, fake, noise, t)


class LatentDiscriminator(Learner):
    """Heads on several layers of the frozen teacher, which judge every place (Sauer et al. 2024, arXiv 2403.12015,
    section 3): the teacher's features at a level say how it sees structure (much noise) or texture (little).

    Args:
        teacher: whose features are judged.
        layers: names of its layers; see `Denoiser.layer`.
        levels: the distribution of noise levels of what is judged.
        gan: see `Gan`.
        head: makes the head for features of a shape.
        optimizer: see `Learner`.
    """

    name = "discriminator"
    diagnostics = GAN_DIAGNOSTICS

    def __init__(
        self,
        teacher: Teacher,
        layers: Sequence[str] = BOTTLENECK,
        *,
        levels: Levels,
        gan: Gan | None = None,
        head: Callable[[Sequence[int]], nn.Module] = place_head_for,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer)
        self.gan, self.levels, self.layers = gan or Gan(), levels, tuple(layers)
        self.needs, self.whole_networks = self.gan.needs, self.gan.whole_networks
        self.head = DiscriminatorHead.on(teacher.denoiser, teacher, layers, head)
        self._teacher = (teacher,)  # in a tuple: its network is not this learner's

    def draw_gan_levels(self, step: Step, purpose: str) -> Tensor:
        """Times (B,) on the step's device."""
        return self.levels(step.uniform(purpose)).to(step.device, non_blocking=True)

    def features(self, x: Tensor, noise: Tensor, t: Tensor, condition: Condition) -> list[Tensor]:
        """Of x (B, ...) with noise at t (B,)."""
        [teacher] = self._teacher
        return teacher.denoiser.features(teacher.schedule.add_noise(x, noise, t), t, condition, self.layers)

    def loss(self, step: Step) -> Tensor:
        t, noise = self.draw_gan_levels(step, "fake/level"), step.normal("fake/noise")
        fake = self.head(self.features(step.samples.detach(), noise, t, step.condition))
        return self.gan.learner_loss(self, step, fake, noise, t)


def score_and_discriminator(
    teacher: Teacher,
    *,
    gan_weight: float,
    gan: Gan,
    gan_levels: tuple[float, float],
    features: FeaturesOf,
    optimizer: OptimizerConfig | None,
) -> tuple[FakeScore, Critic | LatentDiscriminator]:
    """A fake score and what judges its student's samples: itself, or heads of their own on the teacher's bottleneck,
    which leave the fake score to its one task (as in NVIDIA's FastGen).

    Args:
        gan_levels: where samples are judged, as shares of the grid of T = 1000; over the whole grid a critic judges the
            student's samples in its score matching's own pass.
        gan_weight: counts where both are one network.
        gan, optimizer: as `Critic`'s.
    """
    whole, levels = gan_levels == (0.0, 1.0), evenly_from(times_between(teacher.schedule, gan_levels))
    if features == "fake score":
        critic = Critic(
            teacher, gan_weight=gan_weight, gan=gan, gan_levels=None if whole else levels, optimizer=optimizer
        )
        return critic, critic
    judge = LatentDiscriminator(teacher, levels=levels, gan=gan, head=head_for, optimizer=optimizer)
    return FakeScore.from_teacher(teacher, optimizer=optimizer), judge
