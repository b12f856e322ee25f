"""The tangent that a continuous-time consistency model follows."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit import Condition, Denoiser, Step, Teacher
from distillkit.diffusion import lognormal_ratios, per_sample
from distillkit.parts import CLEAN, CleanSource, TangentName, along, level_range, log_spread
from distillkit_scm.trigflow import TrigFlow


class Tangents:
    """g / (|g| + c), g = -cos^2(t) (sigma_d F - dx_t/dt) - r cos(t) sin(t) (x_t + sigma_d dF/dt), from the student's
    present weights, without gradient (Lu & Song 2024, section 4.2 and Algorithm 1): cos(t) df/dt, normalised.

    dx_t/dt is the teacher's velocity (sCD), or cos(t) z - sin(t) x0 (sCT). |g| is the root mean square over a sample's
    numbers, so that c means the same at every size. r grows evenly from 0 to 1 during the warm-up.

    Args:
        student: its denoiser.
        teacher: None to train without.
        guidance: of the teacher.
        mean, std: of ln(sigma / alpha), the proposal of levels; drawn ones beyond the schedule's ends give its ends.
        warmup: share of the stage after which r = 1.
        constant: c.
        how: dF/dt is computed.
        source: where clean samples come from.
    """

    def __init__(
        self, student: Denoiser, teacher: Teacher | None, *, guidance: float, mean: float, std: float, warmup: float,
        constant: float, how: TangentName, source: CleanSource,
    ) -> None:  # fmt: skip
        self.teacher, self.guidance, self.mean, self.std = teacher, guidance, mean, std
        self.warmup, self.constant, self.how = warmup, constant, how
        self.flow = TrigFlow(student.schedule, float(getattr(student, "sigma_data", 0.5)))
        self.source: CleanSource = source
        self._last: tuple[Step, Tensor, Tensor] | None = None

    def __call__(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Levels (B,), the student's F (B, ...) with gradient, and its normalised tangent (B, ...)."""
        data, schedule = step[CLEAN[self.source]], self.flow.schedule
        low, high = level_range(schedule, step.student.sampler.times(schedule)[0])
        drawn = lognormal_ratios(step.uniform("level"), mean=self.mean, std=self.std).log()
        level, r = drawn.clamp(low, high).to(step.device), min(step.progress / self.warmup, 1.0) if self.warmup else 1.0
        noise = step.normal("noise")
        out, tangent = self.at(step.student.denoiser, data.sample, noise, level, data.condition, r)
        log_spread(step, self.ends(data.sample, noise, level, out), data.sample, drawn)
        size = tangent.flatten(1).square().mean(1).sqrt()
        step.log("tangent_rms", size.mean())
        tangent = tangent / per_sample(size + self.constant, tangent)
        self._last = (step, level, tangent)
        return level, out, tangent

    def at(
        self, student: Denoiser, x0: Tensor, noise: Tensor, level: Tensor, condition: Condition, r: float
    ) -> tuple[Tensor, Tensor]:
        """F with gradient and g before it is normalised, of clean samples and standard normal noise, both (B, ...)."""
        flow = self.flow
        cos, sin = flow.angles(level, x0)
        z = flow.sigma_data * noise
        x = cos * x0 + sin * z
        velocity = cos * z - sin * x0 if self.teacher is None else self.teachers(x, level, condition)

        def output(x: Tensor, level: Tensor) -> Tensor:
            return flow.output(student, x, level, condition)

        # d/dlevel is cos(t) sin(t) d/dt.
        derivative = along(output, x, level, cos * sin * velocity, self.how, student)
        out = output(x, level)
        tangent = -cos.square() * (out.detach() - velocity) - r * (cos * sin * x + derivative)
        return out / flow.sigma_data, tangent

    @torch.no_grad()
    def ends(self, x0: Tensor, noise: Tensor, level: Tensor, out: Tensor) -> Tensor:
        """f = cos(t) x_t - sin(t) sigma_d F of the noisy samples that F (B, ...) was made of."""
        cos, sin = self.flow.angles(level, x0)
        return cos * (cos * x0 + sin * self.flow.sigma_data * noise) - sin * self.flow.sigma_data * out

    def of(self, step: Step) -> tuple[Tensor, Tensor]:
        """Levels and tangents of a step, which are computed where they were not yet."""
        if self._last is None or self._last[0] is not step:
            with torch.no_grad():
                self(step)
        assert self._last is not None
        return self._last[1:]

    @torch.no_grad()
    def teachers(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """dx_t/dt of the teacher's ODE."""
        teacher, guidance = self.teacher, self.guidance
        assert teacher is not None
        return self.flow.output(lambda x, t, c: teacher(x, t, c, guidance), x, level, condition)
