"""The objective: the ends of neighbouring points, ever closer, must agree."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from distillkit import Objective, Stage, Step, StudentGenerator
from distillkit.diffusion import ConsistencySampler, pseudo_huber
from distillkit.parts import (
    CLEAN,
    CONSISTENCY_HEALTH,
    CleanSource,
    Neighbours,
    StepWeightingName,
    log_ends,
    step_weight,
)
from distillkit_ect.curricula import Curriculum


class ConsistencyTuning(Objective):
    """E w(s, s_next) (sqrt(|f(x_t, t) - f_target(x_r, r)|^2 + c^2) - c), x_t = alpha x0 + sigma n, for neighbours t, r
    of s > s_next = sigma / alpha (Geng et al. 2024, arXiv 2406.14548; Song & Dhariwal 2023, arXiv 2310.14189, Table 1).

    Args:
        neighbours: how x_r follows from x_t, and whose ends are compared.
        curriculum: which neighbours, at which part of the training.
        weighting: w.
        c: of the distance; None for 0.00054 sqrt(D).
        source: where clean samples come from.
    """

    diagnostics = CONSISTENCY_HEALTH

    def __init__(
        self,
        neighbours: Neighbours,
        curriculum: Curriculum,
        *,
        weighting: StepWeightingName,
        c: float | None,
        source: CleanSource,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        self.neighbours, self.curriculum, self.c = neighbours, curriculum, c
        self.weighting: StepWeightingName = weighting
        self.source: CleanSource = source
        self.needs = (CLEAN[source],)

    def modules(self) -> Mapping[str, nn.Module]:
        return self.neighbours.modules()

    def begin_stage(self, stage: Stage, student: StudentGenerator) -> None:
        self.neighbours.target.restart()

    def after_step(self, step: Step) -> None:
        self.neighbours.target.update()

    def __call__(self, step: Step) -> Tensor:
        data, sampler, schedule = step[CLEAN[self.source]], step.student.sampler, self.neighbours.schedule
        assert isinstance(sampler, ConsistencySampler)
        s, s_next = self.curriculum(step.uniform("level"), step.progress, schedule, sampler.levels[0])
        t, r = (schedule.at(level).float().to(step.device) for level in (s, s_next))
        x0, noise = data.sample, step.normal("noise")
        end, target = self.neighbours.ends(step.student.denoiser, x0, noise, t, r, data.condition)
        log_ends(step, end, target, x0, s)
        weight = step_weight(self.weighting, s, s_next, self.neighbours.sigma_data).float().to(step.device)
        return (weight * pseudo_huber(end, target, self.c)).mean()
