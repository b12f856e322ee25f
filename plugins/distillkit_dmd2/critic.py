"""The critic: a fake score whose bottleneck also tells real images from the student's samples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillkit import Condition, Diagnostic, Objective, OptimizerConfig, Step, Teacher
from distillkit.diffusion import score_matching_loss
from distillkit_dmd.fake_score import FakeScore


def head_for(channels: int, size: int) -> nn.Sequential:
    """Bottleneck features (B, C, S, S) -> logits (B, 1, 1, 1): strided convolutions down to one place (appendix)."""
    layers: list[nn.Module] = []
    while size > 1:
        kernel, stride, padding = (4, 2, 1) if size > 4 else (size, size, 0)
        layers += [nn.Conv2d(channels, channels, kernel, stride, padding), nn.GroupNorm(4, channels), nn.SiLU()]
        size = size // 2 if size > 4 else 1
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, 1))


class Critic(FakeScore):
    """Denoising score matching on the student's samples, plus `gan_weight` times the discriminator's loss
    softplus(D(fake)) + softplus(-D(real)) on equally noisy inputs (section 4.2)."""

    name = "critic"
    diagnostics = (
        Diagnostic(
            "critic_accuracy",
            ok=(0.4, 0.95),
            watch=(0.2, 1.0),
            meaning="share of real and generated images that the discriminator tells apart; 0.5 is chance, near 1 the "
            "student no longer learns from it: lower the weights of the GAN terms",
        ),
    )

    def __init__(self, teacher: Teacher, *, gan_weight: float, optimizer: OptimizerConfig | None = None) -> None:
        super().__init__(teacher.copy_denoiser(), teacher, optimizer=optimizer)
        self.gan_weight = gan_weight
        self.needs = ("samples", "images") if gan_weight else ("samples",)
        one, shape = torch.zeros(1), teacher.spec.shape
        with torch.no_grad():
            device = next(self.denoiser.parameters()).device
            condition = teacher.draw_condition(one).to(device)
            _, features = self.denoiser.with_features(
                one.new_zeros(1, *shape, device=device), one.to(device) + 1, condition
            )
        self.head = head_for(features.shape[1], features.shape[2])

    def logits(self, x: Tensor, sigma: Tensor, noise: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """(denoised, (B,) logits) of noisy x: above zero for what looks real."""
        denoised, features = self.denoiser.with_features(x + sigma.view(-1, 1, 1, 1) * noise, sigma, condition)
        return denoised, self.head(features.float()).flatten()

    def loss(self, step: Step) -> Tensor:
        x, images = step.samples.detach(), step.images
        sigma = step.drawn_from(self.sigmas, "fake/level")
        denoised, fake = self.logits(x, sigma, step.normal("fake/noise"), step.condition)
        loss = score_matching_loss(denoised, x, sigma, self.sigma_data)
        if not self.gan_weight:
            return loss
        _, real = self.logits(
            images.sample, step.drawn_from(self.sigmas, "real/level"), step.normal("real/noise"), images.condition
        )
        step.log("critic_accuracy", 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean()))
        return loss + self.gan_weight * (F.softplus(fake).mean() + F.softplus(-real).mean())


class Adversarial(Objective):
    """softplus(-D(G(z) + sigma n)): the student's part of the non-saturating GAN loss."""

    needs = ("samples",)

    def __init__(self, critic: Critic, *, weight: float) -> None:
        super().__init__(weight)
        self.critic = critic

    def __call__(self, step: Step) -> Tensor:
        sigma = step.drawn_from(self.critic.sigmas, "gan/level")
        _, logits = self.critic.logits(step.samples, sigma, step.normal("gan/noise"), step.condition)
        return F.softplus(-logits).mean()
