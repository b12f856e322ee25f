"""The critic: a fake score whose features also tell real images from the student's samples."""

from __future__ import annotations

from torch import Tensor

from distillkit import Condition, Diagnostic, Images, OptimizerConfig, Samples, Step, Teacher
from distillkit.parts import DiscriminatorHead, FakeScore, accuracy, discriminator_loss, weighted_error


class Critic(FakeScore):
    """Denoising score matching on the student's samples, plus `gan_weight` times the discriminator's loss
    softplus(D(fake)) + softplus(-D(real)) on equally noisy inputs (Yin et al. 2024, arXiv 2405.14867, section 4.3).

    D is a small head on the denoiser's bottleneck; passes that need the logits alone end there.
    """

    name = "critic"
    needs = (Samples, Images)
    diagnostics = (
        Diagnostic(
            "critic_accuracy",
            ok=(0.4, 0.95),
            watch=(0.2, 1.0),
            meaning="share of real and generated images that the discriminator tells apart; 0.5 is chance, near 1 the "
            "student no longer learns from it: lower the weights of the GAN terms",
        ),
        Diagnostic(
            "std_to_images",
            ok=(0.8, 1.25),
            watch=(0.4, 2.0),
            meaning="standard deviation of the student's samples over that of the real images; above 1 they are "
            "over-saturated, as late in runs with strong guidance: lower it, or use --guidance-rescale 0.7",
        ),
    )

    def __init__(self, teacher: Teacher, *, gan_weight: float, optimizer: OptimizerConfig | None = None) -> None:
        super().__init__(teacher.copy_denoiser(), optimizer=optimizer)
        self.gan_weight = gan_weight
        self.head = DiscriminatorHead.on(self.denoiser, teacher)

    def logits(self, x: Tensor, noise: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """(B,) logits of x (B, ...) with noise at t (B,): above zero for what looks real."""
        noisy = self.denoiser.schedule.add_noise(x, noise, t)
        return self.head(self.denoiser.features(noisy, t, condition))

    def loss(self, step: Step) -> Tensor:
        x, images = step.samples.detach(), step.images
        t = self.draw_levels(step, "fake/level")
        noisy = self.denoiser.schedule.add_noise(x, step.normal("fake/noise"), t)
        denoised, features = self.denoiser.with_features(noisy, t, step.condition)
        fake = self.head(features)
        real = self.logits(
            images.sample, step.normal("real/noise"), self.draw_levels(step, "real/level"), images.condition
        )
        step.log("critic_accuracy", accuracy(fake, real))
        step.log("std_to_images", x.std() / images.sample.std())
        matching = weighted_error(denoised, x, self.denoiser.loss_weight(t))
        return matching + self.gan_weight * discriminator_loss(fake, real)
