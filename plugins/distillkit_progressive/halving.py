"""The objective of one halving: one step of the student lands where two steps of its predecessor land."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distillkit import Condition, Objective, Stage, Step, StudentGenerator, Teacher
from distillkit.diffusion import EulerSampler, Weighting, denoised_from, euler_step, l2
from distillkit.parts import CLEAN, CleanSource


class Halving(Objective):
    """E w(t) |D(x_t, t) - x~|^2 with x~ such that one Euler step from t lands on t'' where two of the predecessor do
    (Salimans & Ho 2022, arXiv 2202.00512, Algorithm 2).

    The teacher may be guided in the first stage, whose student learns the guidance in; those after it have it from
    there (Lin et al. 2024, arXiv 2402.13929, section 3.6).

    t and t'' are neighbours among the levels of the stage's sampler, and t' is half-way on the schedule's own spacing.
    The predecessor is frozen: the teacher in the first stage, then the student of the stage before.

    Args:
        student: as it starts, a copy of the teacher, its sampler that of the first stage.
        weighting: w.
        source: where clean samples come from.
        teacher: the predecessor of the first stage where it is guided.
        guidance: of the teacher.
    """

    def __init__(
        self, student: StudentGenerator, weighting: Weighting, *, source: CleanSource, teacher: Teacher | None = None,
        guidance: float = 1.0, weight: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(weight)
        self.predecessor = copy.deepcopy(student.denoiser).requires_grad_(False)
        self.schedule, self.sigma_data = student.schedule, float(getattr(student.denoiser, "sigma_data", 0.5))
        self.weighting, self.teacher, self.guidance = weighting, teacher, guidance
        self.first_steps = getattr(student.sampler, "steps", 0)
        self.source: CleanSource = source
        self.needs = (CLEAN[source],)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"predecessor": self.predecessor}

    def begin_stage(self, stage: Stage, student: StudentGenerator) -> None:
        self.predecessor.load_state_dict(student.denoiser.state_dict())

    def __call__(self, step: Step) -> Tensor:
        data, sampler = step[CLEAN[self.source]], step.student.sampler
        assert isinstance(sampler, EulerSampler)
        levels = torch.tensor(sampler.refined(self.schedule).levels, device=step.device)
        index = 2 * (step.uniform("level") * sampler.steps).long().to(step.device)
        t, t_mid, t_end = (levels[index + k] for k in range(3))
        x = self.schedule.add_noise(data.sample, step.normal("noise"), t)
        guided = sampler.steps == self.first_steps
        target = self.target(x, t, t_mid, t_end, data.condition, guided=guided)
        error = l2(step.student.denoiser(x, t, data.condition), target)
        return (self.weighting(self.schedule.ratio(t), self.sigma_data) * error).mean()

    @torch.no_grad()
    def target(
        self, x: Tensor, t: Tensor, t_mid: Tensor, t_end: Tensor, condition: Condition, *, guided: bool = False
    ) -> Tensor:
        """x~ for x (B, ...) at t, after two Euler (DDIM) steps of the predecessor through t_mid to t_end; of the guided
        teacher where it is `guided`."""

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            if guided and self.teacher is not None and self.guidance != 1:
                return self.teacher(x, t, condition, self.guidance)
            return self.predecessor(x, t, condition)

        x_mid = euler_step(self.schedule, x, denoise(x, t), t, t_mid)
        x_end = euler_step(self.schedule, x_mid, denoise(x_mid, t_mid), t_mid, t_end)
        return denoised_from(self.schedule, x, x_end, t, t_end)
