"""Consistency models: their function, neighbouring points of a trajectory, and what must be the same at both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.health import Diagnostic
from distillkit.contracts.step import Step
from distillkit.contracts.teacher import Teacher
from distillkit.diffusion.boundaries import Boundary, boundary_for, consistency_function
from distillkit.diffusion.solvers import euler_step, heun_step
from distillkit.parts.targets import Target

StepName = Literal["heun", "ddim"]

STD_TO_DATA = Diagnostic(
    "std_to_data",
    ok=(0.85, 1.15),
    watch=(0.2, 2.0),
    meaning="standard deviation of the ends that the student gives to the noisiest quarter of a batch over that of "
    "the clean samples; towards 0 all trajectories end alike, above 1 they diverge: lower the learning rate",
)
CONSISTENCY_HEALTH = (
    STD_TO_DATA,
    Diagnostic(
        "neighbour_gap",
        ok=(0.0, 0.3),
        watch=(0.0, 1.0),
        meaning="how far the ends of neighbouring points lie apart, in units of the data's standard deviation; where "
        "it grows the student runs after its own target: lower the learning rate, or take more levels",
    ),
)


class Neighbours:
    """Two points of one trajectory, and the ends that the student and its target give them (Song et al. 2023, arXiv
    2303.01469, Eq. 7 and 10).

    The teacher alone is guided: a target that was guided again would be guided once more in every round. Where the
    weight is drawn for every sample, student and target are given it as an input (Luo et al. 2023, arXiv 2310.04378,
    section 4.2 and Algorithm 1).

    Args:
        student: its denoiser.
        teacher: whose ODE leads from a point to its neighbour (distillation); None for the clean sample at the
            neighbour's level with the same noise (training without a teacher).
        solver: of that step: "heun", or "ddim" with one evaluation.
        guidance: of the teacher.
        decay: of the target network's moving average.
        boundary: of f, that of the student's sampler; the one of the family of schedules by default.

    Attributes:
        target: the network that targets are taken from.
    """

    def __init__(
        self,
        student: Denoiser,
        teacher: Teacher | None,
        *,
        solver: StepName = "heun",
        guidance: float = 1.0,
        decay: float = 0.0,
        boundary: Boundary | None = None,
    ) -> None:
        self.teacher, self.solver, self.guidance = teacher, solver, guidance
        self.schedule, self.sigma_data = student.schedule, float(getattr(student, "sigma_data", 0.5))
        self.boundary = boundary or boundary_for(self.schedule, self.sigma_data)
        self.target = Target(student, decay)

    def modules(self) -> Mapping[str, nn.Module]:
        """For `Objective.modules`."""
        return {"target": self.target.network} if self.target.network is not None else {}

    def ends(
        self, student: Denoiser, x0: Tensor, noise: Tensor, t: Tensor, t_next: Tensor, condition: Condition,
        target: Callable[..., Tensor] | None = None, guidance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """f(x_t, t) with gradient, and the target's end of the neighbour at t_next without; both (B, ...).

        Args:
            student: the network of f.
            x0, noise: (B, ...), of which x_t is made.
            t, t_next: (B,), t the noisier.
            condition: of every sample.
            target: another denoiser than this one's target.
            guidance: (B,) of each sample in the place of one for all; an input of the student's network.
        """
        x = self.schedule.add_noise(x0, noise, t)
        seen = condition if guidance is None else condition.extended(guidance=guidance)
        with torch.no_grad():
            x_next = self.step(x, x0, noise, t, t_next, condition, guidance)
            wanted = self.f(target or self.target, x_next, t_next, seen)
        return self.f(student, x, t, seen), wanted

    def step(
        self, x: Tensor, x0: Tensor, noise: Tensor, t: Tensor, t_next: Tensor, condition: Condition,
        guidance: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The point at t_next of the trajectory through x (B, ...) at t.

        A teacher whose network takes a weight is given that of each sample, and is not guided a second time.
        """
        if self.teacher is None:
            return self.schedule.add_noise(x0, noise, t_next)
        teacher, weight = self.teacher, self.guidance if guidance is None else guidance
        if guidance is not None and teacher.denoiser.takes_guidance:
            condition, weight = condition.extended(guidance=guidance), 1.0

        def guided(x: Tensor, t: Tensor) -> Tensor:
            return teacher(x, t, condition, weight)

        if self.solver == "ddim":
            return euler_step(self.schedule, x, guided(x, t), t, t_next)
        return heun_step(guided, self.schedule, x, t, t_next)

    def f(self, denoise: Callable[..., Tensor], x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The consistency function of a denoiser."""
        return consistency_function(denoise, x, t, condition, schedule=self.schedule, boundary=self.boundary)


@torch.no_grad()
def log_spread(step: Step, end: Tensor, x0: Tensor, s: Tensor) -> None:
    """Log what `STD_TO_DATA` judges.

    Args:
        end, x0: ends and clean samples, (B, ...).
        s: sigma / alpha of the noisy ones, (B,), or what grows with it.
    """
    end, x0 = _of_the_noisiest(s, end, x0)
    step.log("std_to_data", end.std() / x0.std())


@torch.no_grad()
def log_ends(step: Step, end: Tensor, target: Tensor, x0: Tensor, s: Tensor) -> None:
    """Log what `CONSISTENCY_HEALTH` judges.

    Args:
        end, target, x0: both ends and the clean samples, (B, ...).
        s: sigma / alpha of the noisy ones, (B,) on the CPU.
    """
    end, target, x0 = _of_the_noisiest(s, end, target, x0)
    spread = x0.std()
    step.log("std_to_data", end.std() / spread)
    step.log("neighbour_gap", (end - target).square().mean().sqrt() / spread)


def _of_the_noisiest(s: Tensor, *values: Tensor) -> list[Tensor]:
    """The quarter of values (B, ...) whose s (B,) is the largest, in float32."""
    noisiest = s.argsort(descending=True)[: -(-len(s) // 4)].to(values[0].device)
    return [value[noisiest].float() for value in values]
