"""The objective: a straight flow between noise and its sample, and one step in its place."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from distillkit import Condition, Objective, Pairs, Schedule, Stage, Step, StudentGenerator, Teacher
from distillkit.diffusion import EulerSampler, euler, per_sample
from distillkit.parts import MOMENTS, NamedDistance, log_moments


class Straightening(Objective):
    """E |v(X_s, s) - (z - y)|^2, X_s = (1 - s) y + s z, on pairs of noise z and sample y (Liu et al. 2022, arXiv
    2209.03003, Eq. 1, their t = 1 - s), and in the last stages E d(G(z), y) (Liu et al. 2023, arXiv 2309.06380, Eq. 6).

    The line in the variables of the teacher's schedule: x_t = alpha y + sigma z = (alpha + sigma) X_s with
    s = sigma / (alpha + sigma), and v = (X_s - D) / s, so that |v - (z - y)| = |D - y| / s for any network.

    Pairs of some stages are the teacher's. Those of the others are made in the step, of fresh noise, by the student of
    the last round, which is frozen: Euler's steps on its straight lines.

    Args:
        student: as it starts, a copy of the teacher.
        teacher: its conditioner says what no condition is.
        distances: d of the stages that take one step, by their names in order; all other stages are rounds.
        taught: names of the stages whose pairs are the teacher's.
        steps: Euler steps for a sample of the frozen flow; none where no stage asks for it.
        guidance: of the frozen flow.
    """

    needs = (Pairs,)
    diagnostics = MOMENTS

    def __init__(
        self,
        student: StudentGenerator,
        teacher: Teacher,
        distances: Mapping[str, NamedDistance],
        *,
        taught: Sequence[str],
        steps: int,
        guidance: float = 1.0,
    ) -> None:
        super().__init__()
        self.schedule, self.teacher, self.taught, self.guidance = student.schedule, teacher, taught, guidance
        self.predecessor = copy.deepcopy(student.denoiser).requires_grad_(False) if steps else None
        self.times = straight_levels(self.schedule, steps)[:-1]
        self.distances, last = distances, [*distances.values()][-1]
        self.remark, self.detail = last.remark, last.detail

    def prepare(self) -> None:
        for distance in self.distances.values():
            distance.prepare()

    @property
    def frozen_bytes(self) -> int:
        return sum(distance.frozen_bytes for distance in self.distances.values())

    def modules(self) -> Mapping[str, nn.Module]:
        return {"predecessor": self.predecessor} if self.predecessor is not None else {}

    def begin_stage(self, stage: Stage, student: StudentGenerator) -> None:
        # The stages that take one step all learn from the flow of the last round.
        if self.predecessor is not None and stage.name not in [*self.distances][1:]:
            self.predecessor.load_state_dict(student.denoiser.state_dict())

    def __call__(self, step: Step) -> Tensor:
        pairs = step.pairs if step.stage.name in self.taught else self.simulated(step.noise, step.condition)
        if step.stage.name in self.distances:
            made = step.student(pairs.noise, pairs.condition)
            log_moments(step, made, pairs.sample)
            return self.distances[step.stage.name](made, pairs.sample).mean()
        t = straight_times(self.schedule, step.uniform("level")).float().to(step.device)
        x = self.schedule.add_noise(pairs.sample, pairs.noise, t)
        error = step.student.denoiser(x, t, pairs.condition) - pairs.sample
        return (error / per_sample(noise_share(self.schedule, t), x)).square().mean()

    @torch.no_grad()
    def simulated(self, noise: Tensor, condition: Condition) -> Pairs:
        """Pairs of the frozen flow, from standard normal noise (B, ...)."""
        assert self.predecessor is not None
        flow = Teacher(self.predecessor, self.teacher.spec, self.teacher.conditioner, self.teacher.codec)
        sample = euler(lambda x, t: flow(x, t, condition, self.guidance), noise, self.times, self.schedule)
        return Pairs(noise, sample, condition)


def noise_share(schedule: Schedule, t: Tensor) -> Tensor:
    """s = sigma / (alpha + sigma), the place of times t on the line from sample (0) to noise (1); of t's shape."""
    ratio = schedule.ratio(t)
    return ratio / (1 + ratio)


def straight_times(schedule: Schedule, part: Tensor) -> Tensor:
    """Times at parts of the line, 0 for the schedule's smallest time, 1 for its largest; float64, of part's shape."""
    ends = noise_share(schedule, torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64))
    share = torch.lerp(ends[0], ends[1], part.double())
    return schedule.at(share / (1 - share))


def straight_levels(schedule: Schedule, steps: int) -> Tensor:
    """The steps + 1 times of a way through the line in even steps, descending; float64."""
    return straight_times(schedule, torch.linspace(1, 0, steps + 1, dtype=torch.float64))


def straight_sampler(schedule: Schedule, steps: int) -> EulerSampler:
    """Euler's steps of a straight flow: those of its velocity, whatever the schedule's variables are."""
    return EulerSampler(levels=tuple(straight_levels(schedule, steps).tolist()))
