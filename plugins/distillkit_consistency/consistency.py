"""The consistency objective: neighbouring points of one trajectory have one end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from distillkit import Condition, Denoiser, Objective, Stage, Step, StudentGenerator, Teacher
from distillkit.diffusion import ConsistencySampler, Weighting, consistency_function, euler_step, heun_step
from distillkit.parts import CLEAN, CleanSource, NamedDistance, Target

StepName = Literal["heun", "ddim"]


class ConsistencyLoss(Objective):
    """E w(t_i) d(f(x_i, t_i), f_target(x_{i+k}, t_{i+k})), x_i = alpha x0 + sigma n at t_i (Song et al. 2023, Eq. 7 and
    10; k > 1: Luo et al. 2023, arXiv 2310.04378, section 4.3).

    x_{i+k} is one step of the teacher's ODE from x_i (distillation), or x0 at t_{i+k} with the same noise (training
    without a teacher). The levels t_0 > ... > t_{N-1} lead from the one where the student's sampler starts to the
    schedule's smallest, where steps end that would lead beyond it. The teacher alone is guided: a target that was
    guided again would be guided once more in every round.

    Args:
        student: its denoiser.
        teacher: whose ODE is followed; None to train without.
        distance, weighting: d and w.
        levels: N.
        skip: k.
        solver: of the step: "heun", or "ddim" with one evaluation.
        decay: of the target network's moving average.
        source: where clean samples come from.
        guidance: of the teacher.
    """

    def __init__(
        self,
        student: Denoiser,
        teacher: Teacher | None,
        distance: NamedDistance,
        weighting: Weighting,
        *,
        levels: int,
        skip: int = 1,
        solver: StepName = "heun",
        decay: float,
        source: CleanSource,
        guidance: float = 1.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        self.teacher, self.distance, self.weighting, self.guidance = teacher, distance, weighting, guidance
        self.schedule, self.sigma_data = student.schedule, float(getattr(student, "sigma_data", 0.5))
        self.target, self.levels, self.skip, self.solver = Target(student, decay), levels, skip, solver
        self.source: CleanSource = source
        self.needs, self.remark, self.detail = (CLEAN[source],), distance.remark, distance.detail

    def prepare(self) -> None:
        self.distance.prepare()

    @property
    def frozen_bytes(self) -> int:
        return self.distance.frozen_bytes

    def modules(self) -> Mapping[str, nn.Module]:
        return {"target": self.target.network} if self.target.network is not None else {}

    def begin_stage(self, stage: Stage, student: StudentGenerator) -> None:
        self.target.restart()

    def after_step(self, step: Step) -> None:
        self.target.update()

    def __call__(self, step: Step) -> Tensor:
        data, sampler = step[CLEAN[self.source]], step.student.sampler
        assert isinstance(sampler, ConsistencySampler)
        times = self.schedule.path(self.levels - 1, sampler.levels[0]).float()
        index = (step.uniform("level") * (len(times) - 1)).long()
        following = (index + self.skip).clamp(max=len(times) - 1)
        t, t_next = (times[i].to(step.device) for i in (index, following))
        losses = self.losses(step.student.denoiser, data.sample, step.normal("noise"), t, t_next, data.condition)
        return losses.mean()

    def losses(
        self, student: Denoiser, x0: Tensor, noise: Tensor, t: Tensor, t_next: Tensor, condition: Condition
    ) -> Tensor:
        """The loss of each sample, (B,), between the times t and t_next (B,)."""
        x = self.schedule.add_noise(x0, noise, t)
        with torch.no_grad():
            x_next = self.neighbour(x, x0, noise, t, t_next, condition)
            target = self.f(self.target, x_next, t_next, condition)
        weight = self.weighting(self.schedule.ratio(t), self.sigma_data)
        return weight * self.distance(self.f(student, x, t, condition), target)

    def neighbour(
        self, x: Tensor, x0: Tensor, noise: Tensor, t: Tensor, t_next: Tensor, condition: Condition
    ) -> Tensor:
        """The point at t_next of the trajectory through x (B, ...) at t."""
        if self.teacher is None:
            return self.schedule.add_noise(x0, noise, t_next)
        teacher = self.teacher

        def guided(x: Tensor, t: Tensor) -> Tensor:
            return teacher(x, t, condition, self.guidance)

        if self.solver == "ddim":
            return euler_step(self.schedule, x, guided(x, t), t, t_next)
        return heun_step(guided, self.schedule, x, t, t_next)

    def f(self, denoise: Callable[..., Tensor], x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The consistency function of a denoiser."""
        return consistency_function(denoise, x, t, condition, schedule=self.schedule, sigma_data=self.sigma_data)
