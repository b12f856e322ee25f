"""The objective: the identity between average and instantaneous velocities."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distillkit import Condition, Denoiser, Diagnostic, Objective, Step, Teacher
from distillkit.diffusion import Schedule, lognormal_ratios, per_sample
from distillkit.parts import CLEAN, CleanSource, TangentName, along, level_range
from distillkit_meanflow.two_times import UNTIL


class AverageVelocity(Objective):
    """E |d|^2 / sg(|d|^2 + c)^p, d = u(z_t, r, t) - sg(v - (t - r) du/dt), du/dt along the trajectory
    (Geng et al. 2025, Eq. 10, 11 and 22).

    z_t = (1 - t) x0 + t n for any schedule: t = s / (1 + s) with s = sigma / alpha. u = (z_t - X) / t of the student's
    X(x, t, until). v is the teacher's velocity (z_t - D) / t, or that of the data, n - x0.

    Args:
        schedule: the student's.
        teacher: None to train without.
        guidance: of the teacher.
        times: mean and standard deviation of ln(t / (1 - t)) = ln(sigma / alpha), from which t is drawn.
        ends: the same of r, which is at most t; None: both are drawn from `times`, and the larger is t.
        share: of the samples with r < t; the others are those of flow matching.
        power, constant: p and c.
        how: du/dt is computed.
        source: where clean samples come from.
    """

    diagnostics = (
        Diagnostic(
            "average_to_velocity",
            ok=(0.5, 3.0),
            watch=(0.2, 10.0),
            meaning="size of the student's average velocities over that of the velocity at their beginning; an average "
            "is about as large as what it is of; far above, the student runs after its own derivative: lower the "
            "learning rate, the share, or the noise levels",
        ),
    )

    def __init__(
        self, schedule: Schedule, teacher: Teacher | None, *, guidance: float, times: tuple[float, float],
        ends: tuple[float, float] | None, share: float, power: float, constant: float, how: TangentName,
        source: CleanSource,
    ) -> None:  # fmt: skip
        super().__init__()
        self.schedule, self.teacher, self.guidance = schedule, teacher, guidance
        self.times, self.ends, self.share = times, ends, share
        self.power, self.constant, self.how = power, constant, how
        self.source: CleanSource = source
        self.needs = (CLEAN[source],)

    def __call__(self, step: Step) -> Tensor:
        data = step[CLEAN[self.source]]
        level, until = (drawn.to(step.device) for drawn in self.draw(step))
        losses, sizes = self.losses(
            step.student.denoiser, data.sample, step.normal("noise"), level, until, data.condition
        )
        step.log("average_to_velocity", sizes.mean())
        return losses.mean()

    def losses(
        self, student: Denoiser, x0: Tensor, noise: Tensor, level: Tensor, until: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        """The loss of each sample, (B,), from t to r, which are given as ln(sigma / alpha) and sigma / alpha, (B,); and
        |u| / |v|, (B,)."""
        t = per_sample(level.sigmoid(), x0)
        z = (1 - t) * x0 + t * noise
        velocity = noise - x0 if self.teacher is None else self.teachers(z, level, condition)
        target = self.target(student, z, velocity, level, until, condition)
        u = self.u(student, z, level, until, condition)
        squared = (u - target).flatten(1).square().sum(1)
        sizes = u.detach().flatten(1).norm(dim=1) / velocity.flatten(1).norm(dim=1)
        return squared / (squared.detach() + self.constant) ** self.power, sizes

    def draw(self, step: Step) -> tuple[Tensor, Tensor]:
        """ln(sigma / alpha) of t and sigma / alpha of r, (B,) each on the CPU."""
        low, high = level_range(self.schedule, step.student.sampler.times(self.schedule)[0])
        (mean, std), (end_mean, end_std) = self.times, self.ends or self.times
        later = lognormal_ratios(step.uniform("level"), mean=mean, std=std)
        until = lognormal_ratios(step.uniform("until"), mean=end_mean, std=end_std)
        if self.ends is None:
            later, until = torch.maximum(later, until), torch.minimum(later, until)
        level = later.log().clamp(low, high)
        until = torch.where(step.uniform("apart") < self.share, until, torch.inf)
        return level, torch.minimum(until, level.exp())

    @torch.no_grad()
    def target(
        self, student: Denoiser, z: Tensor, velocity: Tensor, level: Tensor, until: Tensor, condition: Condition
    ) -> Tensor:
        """v - (t - r) du/dt, (B, ...). The derivative is computed for the samples with r < t alone."""
        # r = t was made on the CPU, whose exp may differ from the device's in the last place.
        moved = (until < level.exp() * (1 - 1e-6)).nonzero()[:, 0]
        if not self.share:
            return velocity
        # At least one in every case: processes that hold the network in parts must make the same passes.
        chosen = moved if len(moved) else moved.new_zeros(1)
        z, v, level, until = (x[chosen] for x in (z, velocity, level, until))
        condition, t, r = condition.select(chosen), per_sample(level.sigmoid(), z), per_sample(until / (1 + until), z)
        slope = t * (1 - t)  # dt / dlevel

        def u(z: Tensor, level: Tensor) -> Tensor:
            return self.u(student, z, level, until, condition)

        derivative = along(u, z, level, slope * v, self.how, student) / slope
        return velocity.index_copy(0, chosen, v - (t - r) * derivative) if len(moved) else velocity

    def u(self, student: Denoiser, z: Tensor, level: Tensor, until: Tensor, condition: Condition) -> Tensor:
        """The student's average velocity from t to r, of z_t (B, ...)."""
        return self.velocity(lambda x, t: student(x, t, condition.extended(**{UNTIL: until})), z, level)

    @torch.no_grad()
    def teachers(self, z: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """The teacher's velocity at z_t (B, ...)."""
        teacher, guidance = self.teacher, self.guidance
        assert teacher is not None
        return self.velocity(lambda x, t: teacher(x, t, condition, guidance), z, level)

    def velocity(self, denoise: Callable[[Tensor, Tensor], Tensor], z: Tensor, level: Tensor) -> Tensor:
        """(z_t - D) / t; the schedule's own x is alpha z_t / (1 - t)."""
        time, rest = self.schedule.at(level.exp()), (-level).sigmoid()
        x = per_sample(self.schedule.alpha(time) / rest, z) * z
        return (z - denoise(x, time)) / per_sample(level.sigmoid(), z)
