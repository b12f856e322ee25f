"""The objective: DMD's gradient, weighted for an f-divergence."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from distillkit import Condition, Diagnostic, ScoreEstimator, Step, Teacher
from distillkit.diffusion import per_sample
from distillkit.parts import Critic, DistributionMatching, LatentDiscriminator, kl_gradient, log_errors
from distillkit_fdistill.normalisation import Normalisation

EFFECTIVE_SHARE = Diagnostic(
    "effective_share",
    ok=(0.3, 1.01),
    watch=(0.1, 1.01),
    meaning="(sum h)^2 / (B sum h^2), the share of the samples that the weights leave in effect; near 0 a few decide: "
    "take a divergence that grows less with the ratio, a smaller --ratio-max, or a larger batch",
)


class FDivergence(DistributionMatching):
    """h(r) (mu_fake - mu_real) / mean |x - mu_real| with r = exp(D(x_t)) (Xu et al. 2025, Theorem 1 and Eq. 7): the
    gradient of E_q f(p / q) with DMD's weight of noise levels. h is normalised by `normalisation`.

    Args:
        teacher, fake: give the two scores.
        discriminator: gives the logit D of real against generated samples, of the samples that the scores see too.
        normalisation: h and its means.
        weight, guidance, rescale, levels: as `DistributionMatching`'s.
    """

    def __init__(
        self, teacher: Teacher, fake: ScoreEstimator, discriminator: Critic | LatentDiscriminator,
        normalisation: Normalisation, *, weight: float, guidance: float, rescale: float, levels: tuple[float, float],
    ) -> None:  # fmt: skip
        super().__init__(teacher, fake, weight=weight, guidance=guidance, rescale=rescale, levels=levels)
        self.discriminator, self.normalisation = discriminator, normalisation
        self.diagnostics = (*self.diagnostics, EFFECTIVE_SHARE)

    def gradient(self, step: Step, x: Tensor) -> Tensor:
        """The weighted gradient for samples x (B, ...)."""
        share, noise = step.uniform("kl/level"), step.normal("kl/noise")
        t = self.times[(share * len(self.times)).long()].to(step.device, non_blocking=True)
        real, fake, logits = self.judged(x, noise, t, step.condition)
        h = self.normalisation(logits.float().mean(1).exp(), share)
        gradient = per_sample(h, x) * kl_gradient(x, real, fake)
        step.log("kl_gradient_rms", gradient.square().mean().sqrt())
        step.log("effective_share", h.mean().square() / h.square().mean().clamp(min=1e-12))
        log_errors(step, x, real, fake, self.guidance)
        return gradient

    def judged(self, x: Tensor, noise: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, ...) with noise at t (B,), denoised by the teacher and the fake score, and its logits (B, N)."""
        noisy = self.teacher.schedule.add_noise(x, noise, t)
        real = self.teacher(noisy, t, condition, self.guidance, rescale=self.rescale)
        if isinstance(self.discriminator, Critic):
            return real, *self.discriminator.judged(noisy, t, condition)
        features = self.discriminator.features(x, noise, t, condition)
        return real, self.fake(noisy, t, condition), self.discriminator.head(features)

    def after_step(self, step: Step) -> None:
        self.normalisation.update()

    def modules(self) -> Mapping[str, nn.Module]:
        return {"normalisation": self.normalisation}
