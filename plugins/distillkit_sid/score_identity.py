"""The objective of score identity distillation."""

from __future__ import annotations

from torch import Tensor

from distillkit import Objective, Samples, ScoreEstimator, Step, Teacher
from distillkit.parts import fake_error, log_errors, residual


class ScoreIdentity(Objective):
    """E w [(1 - alpha) |d|^2 + d . (f_psi - x_g)], d = f_phi(x_t) - f_psi(x_t), x_t the noisy x_g
    (Zhou et al. 2024, Eq. 23 and its normalisation): f_phi the teacher, f_psi the fake score, x_g the student's sample.

    Gradients reach the student through x_g and through both denoisers. w = 1 / mean |x_g - f_phi|, a constant.

    Args:
        teacher: f_phi, guided by `guidance`.
        fake: f_psi.
        times: (T,), of which t is drawn evenly.
        alpha: of the loss.
        guidance: of the teacher.
    """

    needs = (Samples,)

    def __init__(self, teacher: Teacher, fake: ScoreEstimator, times: Tensor, *, alpha: float, guidance: float) -> None:
        super().__init__()
        self.teacher, self.fake, self.times, self.alpha, self.guidance = teacher, fake, times, alpha, guidance
        self.diagnostics = (fake_error(guidance),)

    def __call__(self, step: Step) -> Tensor:
        x, t = step.samples, step.drawn_from(self.times, "level")
        noisy = self.teacher.schedule.add_noise(x, step.normal("level/noise"), t)
        real = self.teacher(noisy, t, step.condition, self.guidance)
        fake = self.fake(noisy, t, step.condition)
        log_errors(step, x, real, fake, self.guidance)
        return identity_loss(x, real, fake, self.alpha)


def identity_loss(x: Tensor, real: Tensor, fake: Tensor, alpha: float) -> Tensor:
    """The loss from x_g, f_phi(x_t) and f_psi(x_t), all (B, ...); a scalar, the mean over all elements.

    The paper's code sums over the elements of a sample and multiplies by 100. Adam's steps do not depend on that factor
    but through its eps, so presets of the paper's trainings divide eps by it.
    """
    weight = 1 / residual(x, real).detach().clamp(min=1e-5)
    apart = real - fake
    return (weight * ((1 - alpha) * apart.square() + apart * (fake - x))).mean()
