"""The consistency objective: neighbouring points of one trajectory have one end."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distillkit import Condition, Denoiser, Objective, Stage, Step, StudentGenerator, Teacher
from distillkit.diffusion import Distance, Weighting, consistency_function, karras_sigmas
from distillkit_consistency.target import Target


class ConsistencyLoss(Objective):
    """E w(t_i) d(f(x_i, t_i), f_target(x_{i+1}, t_{i+1})), x_i = x0 + t_i n (Song et al. 2023, Eq. 7 and 10).

    x_{i+1} is one Heun step of the teacher's ODE from x_i (distillation), or x0 + t_{i+1} n (training without teacher).

    Args:
        teacher: whose ODE is followed; None to train without.
        distance, weighting: d and w.
        levels: N of the Karras grid t_0 > ... > t_{N-1}.
        decay: of the target network's moving average.
        source: "images", or "pairs" for the teacher's own samples.
        guidance: of the teacher.
    """

    def __init__(
        self,
        student: StudentGenerator,
        teacher: Teacher | None,
        distance: Distance,
        weighting: Weighting,
        *,
        levels: int,
        decay: float,
        source: str,
        guidance: float = 1.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        self.teacher, self.distance, self.weighting, self.guidance = teacher, distance, weighting, guidance
        self.target = Target(student.denoiser, decay)
        self.needs = (source,)
        self.source = source
        self.spec = spec = student.spec
        self.sigmas = karras_sigmas(levels, sigma_min=spec.sigma_min, sigma_max=spec.sigma_max, rho=spec.rho).float()

    def modules(self) -> Mapping[str, nn.Module]:
        return {"target": self.target.network} if self.target.network is not None else {}

    def begin_stage(self, stage: Stage, student: StudentGenerator) -> None:
        self.target.restart()

    def after_step(self, step: Step) -> None:
        self.target.update()

    def __call__(self, step: Step) -> Tensor:
        data = step.clean(self.source)
        index = (step.uniform("level") * (len(self.sigmas) - 1)).long()
        t, t_next = (self.sigmas[i].to(step.device) for i in (index, index + 1))
        return self.loss(step.student.denoiser, data.sample, step.normal("noise"), t, t_next, data.condition).mean()

    def loss(
        self, student: Denoiser, x0: Tensor, noise: Tensor, t: Tensor, t_next: Tensor, condition: Condition
    ) -> Tensor:
        """The loss of each sample, (B,), between the levels t and t_next (B,)."""
        x = x0 + t.view(-1, 1, 1, 1) * noise
        with torch.no_grad():
            if self.teacher is None:
                x_next = x0 + t_next.view(-1, 1, 1, 1) * noise
            else:
                x_next = self.heun_step(x, t, t_next, condition)
            target = self.f(self.target, x_next, t_next, condition)
        return self.weighting(t, self.spec.sigma_data) * self.distance(self.f(student, x, t, condition), target)

    def heun_step(self, x: Tensor, t: Tensor, t_next: Tensor, condition: Condition) -> Tensor:
        """One step of the teacher's ODE dx/dt = (x - D(x, t)) / t from t to t_next > 0."""
        assert self.teacher is not None
        a, b = t.view(-1, 1, 1, 1), t_next.view(-1, 1, 1, 1)
        d = (x - self.teacher(x, t, condition, self.guidance)) / a
        x_euler = x + (b - a) * d
        d_next = (x_euler - self.teacher(x_euler, t_next, condition, self.guidance)) / b
        return x + (b - a) * (d + d_next) / 2

    def f(self, denoiser: Denoiser | Target, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        return consistency_function(
            denoiser, x, sigma, condition, sigma_min=self.spec.sigma_min, sigma_data=self.spec.sigma_data
        )
