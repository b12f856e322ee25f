"""The consistency objective: neighbouring points of one trajectory have one end."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from distillkit import Condition, Denoiser, Objective, Stage, Step, StudentGenerator, Teacher
from distillkit.diffusion import ConsistencySampler, Weighting
from distillkit.parts import CLEAN, STD_TO_DATA, CleanSource, NamedDistance, Neighbours, StepName, log_spread
from distillkit_consistency.growth import Growth


class ConsistencyLoss(Objective):
    """E w(t_i) d(f(x_i, t_i), f_target(x_{i+k}, t_{i+k})), x_i = alpha x0 + sigma n at t_i (Song et al. 2023, Eq. 7 and
    10; k > 1: Luo et al. 2023, arXiv 2310.04378, section 4.3).

    x_{i+k} is one step of the teacher's ODE from x_i (distillation), or x0 at t_{i+k} with the same noise (training
    without a teacher). The levels t_0 > ... > t_{N-1} lead from the one where the student's sampler starts to the
    schedule's smallest, where steps end that would lead beyond it.

    Args:
        student: its denoiser.
        teacher, solver, guidance: see `Neighbours`.
        distance, weighting: d and w.
        growth: N, and the decay of the target's average.
        skip: k.
        source: where clean samples come from.
        drawn: range of the guidance weights that are drawn, for a student whose network takes one; none for
            `guidance` alone.
    """

    diagnostics = (STD_TO_DATA,)

    def __init__(
        self,
        student: Denoiser,
        teacher: Teacher | None,
        distance: NamedDistance,
        weighting: Weighting,
        *,
        growth: Growth,
        skip: int = 1,
        solver: StepName = "heun",
        source: CleanSource,
        guidance: float = 1.0,
        drawn: tuple[float, float] | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        self.neighbours = Neighbours(student, teacher, solver=solver, guidance=guidance, decay=growth.decay)
        self.distance, self.weighting, self.growth, self.skip = distance, weighting, growth, skip
        self.drawn = drawn
        self.source: CleanSource = source
        self.needs, self.remark, self.detail = (CLEAN[source],), distance.remark, distance.detail

    def prepare(self) -> None:
        self.distance.prepare()

    @property
    def frozen_bytes(self) -> int:
        return self.distance.frozen_bytes

    def modules(self) -> Mapping[str, nn.Module]:
        return self.neighbours.modules()

    def begin_stage(self, stage: Stage, student: StudentGenerator) -> None:
        self.neighbours.target.restart()

    def after_step(self, step: Step) -> None:
        self.neighbours.target.decay = self.growth.decay_at(step.progress)
        self.neighbours.target.update()

    def __call__(self, step: Step) -> Tensor:
        data, sampler = step[CLEAN[self.source]], step.student.sampler
        assert isinstance(sampler, ConsistencySampler)
        self.neighbours.boundary = sampler.boundary
        times = self.neighbours.schedule.path(self.growth.levels(step.progress) - 1, sampler.levels[0]).float()
        index = (step.uniform("level") * (len(times) - 1)).long()
        following = (index + self.skip).clamp(max=len(times) - 1)
        t, t_next = (times[i].to(step.device) for i in (index, following))
        losses = self.losses(
            step.student.denoiser,
            data.sample,
            step.normal("noise"),
            t,
            t_next,
            data.condition,
            self.weights(step),
            step,
        )
        return losses.mean()

    def weights(self, step: Step) -> Tensor | None:
        """Guidance weights (B,), evenly drawn; None where one holds for all."""
        if self.drawn is None:
            return None
        low, high = self.drawn
        return (low + (high - low) * step.uniform("guidance")).float().to(step.device)

    def losses(
        self, student: Denoiser, x0: Tensor, noise: Tensor, t: Tensor, t_next: Tensor, condition: Condition,
        guidance: Tensor | None = None, step: Step | None = None,
    ) -> Tensor:  # fmt: skip
        """The loss of each sample, (B,), between the times t and t_next (B,), with guidance weights (B,) if any; how
        varied the ends are is logged in the step."""
        end, target = self.neighbours.ends(student, x0, noise, t, t_next, condition, guidance=guidance)
        ratio = self.neighbours.schedule.ratio(t)
        if step is not None:
            log_spread(step, end, x0, ratio)
        weight = self.weighting(ratio, self.neighbours.sigma_data)
        return weight * self.distance(end, target)
