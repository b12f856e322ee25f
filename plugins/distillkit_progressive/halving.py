"""The objective of one halving: one step of the student lands where two steps of its predecessor land."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distillkit import Condition, Denoiser, Objective, Stage, Step, StudentGenerator
from distillkit.diffusion import EulerSampler, Weighting


class Halving(Objective):
    """E w(t) |D(x_t, t) - x~|^2 with x~ such that one Euler step from t lands on t'' where two of the predecessor do
    (Salimans & Ho 2022, arXiv 2202.00512, Algorithm 2).

    The predecessor is frozen: the teacher in the first stage, then the student of the stage before.

    Args:
        student: as it starts, a copy of the teacher.
        weighting: w.
        source: "images", or "pairs" for the teacher's own samples.
    """

    def __init__(self, student: StudentGenerator, weighting: Weighting, *, source: str, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.predecessor = copy.deepcopy(student.denoiser).requires_grad_(False)
        self.weighting, self.source, self.needs = weighting, source, (source,)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"predecessor": self.predecessor}

    def begin_stage(self, stage: Stage, student: StudentGenerator) -> None:
        self.predecessor.load_state_dict(student.denoiser.state_dict())

    def __call__(self, step: Step) -> Tensor:
        data = step.clean(self.source)
        sampler = step.student.sampler
        assert isinstance(sampler, EulerSampler)
        # The stage's own grid, and the levels half-way between its steps.
        fine = torch.tensor(sampler.refined(step.student.spec.rho).sigmas, device=step.device)
        index = 2 * (step.uniform("level") * sampler.steps).long().to(step.device)
        t, t_mid, t_end = (fine[index + k] for k in range(3))
        x = data.sample + t.view(-1, 1, 1, 1) * step.normal("noise")
        target = self.target(x, t, t_mid, t_end, data.condition)
        error = (step.student.denoiser(x, t, data.condition) - target).square().mean(dim=(1, 2, 3))
        return (self.weighting(t, step.student.spec.sigma_data) * error).mean()

    @torch.no_grad()
    def target(self, x: Tensor, t: Tensor, t_mid: Tensor, t_end: Tensor, condition: Condition) -> Tensor:
        """x~ = x_t - t (x_t'' - x_t) / (t'' - t), with x_t'' after two Euler (DDIM) steps of the predecessor."""
        a, c = t.view(-1, 1, 1, 1), t_end.view(-1, 1, 1, 1)
        x_mid = euler_step(self.predecessor, x, t, t_mid, condition)
        x_end = euler_step(self.predecessor, x_mid, t_mid, t_end, condition)
        return x - a * (x_end - x) / (c - a)


def euler_step(denoiser: Denoiser, x: Tensor, t: Tensor, t_next: Tensor, condition: Condition) -> Tensor:
    """x + (t' - t) (x - D(x, t)) / t for levels t, t' (B,)."""
    a, b = t.view(-1, 1, 1, 1), t_next.view(-1, 1, 1, 1)
    return x + (b - a) * (x - denoiser(x, t, condition)) / a
