"""SiDA: score identity distillation with a discriminator that needs no weights of its own."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor, nn

from distillkit import Method, MethodConfig, Recipe, Step, Teacher
from distillkit.parts import LEVELS, R1, Critic, Gan, log_errors, lognormal_levels, noise_levels, own_rate, residual
from distillkit_sid.adversarial_presets import ADVERSARIAL_PRESETS
from distillkit_sid.method import one_step_student
from distillkit_sid.score_identity import ScoreIdentity, identity_loss


class ChannelMean(nn.Module):
    """The logit of every place: the mean over the channels of features (B, C, ...), or of tokens (B, T, C)."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.axis = 2 if len(shape) == 3 else 1

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.axis, keepdim=True)


class AdversarialScoreIdentity(ScoreIdentity):
    """SiD's loss, plus `gan_weight` times w softplus(-D(x_t)) of the same noisy samples (Zhou et al. 2024, arXiv
    2410.14919, section 3): D the fake score's encoder, w = 1 / mean |x_g - f_phi| SiD's own weight.

    Their code multiplies the means of w and of the softplus over a GPU's batch, which would make a result depend on how
    many GPUs there are; here a sample's fakeness has its own w.
    """

    def __init__(
        self, teacher: Teacher, critic: Critic, times: Tensor, *, alpha: float, guidance: float, gan_weight: float
    ) -> None:
        super().__init__(teacher, critic, times, alpha=alpha, guidance=guidance)
        self.critic, self.gan_weight = critic, gan_weight

    def __call__(self, step: Step) -> Tensor:
        x, t = step.samples, step.drawn_from(self.times, "level")
        noisy = self.teacher.schedule.add_noise(x, step.normal("level/noise"), t)
        real = self.teacher(noisy, t, step.condition, self.guidance)
        fake, logits = self.critic.judged(noisy, t, step.condition)
        log_errors(step, x, real, fake, self.guidance)
        return identity_loss(x, real, fake, self.alpha) + self.gan_weight * fakeness(x, real, logits)


def fakeness(x: Tensor, real: Tensor, logits: Tensor) -> Tensor:
    """w softplus(-D(x_t)) from x_g and f_phi(x_t) (B, ...) and the logits (B, N) of x_t; a scalar, their mean."""
    weight = 1 / residual(x, real).detach().clamp(min=1e-5).flatten()
    return (weight * nn.functional.softplus(-logits.float().clamp(-10, 10)).mean(1)).mean()


class SiDAConfig(MethodConfig):
    """Settings of SiDA."""

    alpha: float = Field(1.0, ge=0, le=2, description="alpha of the loss: 1 leaves the squared difference out")
    largest: float = Field(0.8, gt=0, le=1, description="largest noise level of the loss, as a share of the grid")
    guidance: float = Field(1.0, ge=0, description="guidance weight w of the teacher: uncond + w (cond - uncond)")
    gan_weight: float = Field(1e-4, ge=0, description="weight of the GAN loss beside SiD's for the student")
    critic_gan_weight: float = Field(
        0.03, gt=0, description="weight of the GAN loss for the critic, beside its score matching"
    )
    r1_weight: float = Field(
        0.0, ge=0, description="weight of R1 on the discriminator, by a finite difference; 0 turns it off"
    )
    critic_lr: float | None = Field(None, gt=0, le=1, description="learning rate of the critic; the student's if none")


class SiDA(Method):
    """One-step student by score identity distillation and a discriminator on the fake score's encoder (Zhou et al.
    2024)."""

    name = "sida"
    Config = SiDAConfig
    presets = ADVERSARIAL_PRESETS
    caution = (
        "The discriminator shares the fake score's weights: where its weight is large beside the score matching the "
        "score suffers; lower --critic-gan-weight first."
    )
    examples = ({"alpha": 1.2, "largest": 1.0, "guidance": 2.0}, {"critic_lr": 1e-3, "r1_weight": 0.1})

    def recipe(self, teacher: Teacher, config: SiDAConfig) -> Recipe:
        critic = Critic(
            teacher, gan_weight=config.critic_gan_weight, gan=Gan(r1=R1(config.r1_weight), same_noise=True),
            levels=lognormal_levels(teacher.schedule), head=ChannelMean, optimizer=own_rate(config.critic_lr),
        )  # fmt: skip
        objective = AdversarialScoreIdentity(
            teacher, critic, noise_levels(teacher.schedule)[: round(config.largest * LEVELS)], alpha=config.alpha,
            guidance=config.guidance, gan_weight=config.gan_weight,
        )  # fmt: skip
        return Recipe(one_step_student(teacher), [objective], [critic], guidance=config.guidance)
