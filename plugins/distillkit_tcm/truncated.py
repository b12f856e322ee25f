"""The objective: consistency over the whole range, then above t' alone, held there by the frozen first model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from distillkit import Condition, Denoiser, Objective, Stage, Step, StudentGenerator
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
from distillkit_tcm.levels import TruncatedRange, WholeRange

FIRST, TRUNCATED = "consistency", "truncated consistency"
"""Names of the two stages."""


class TruncatedConsistency(Objective):
    """L_C + w_b L_B in the second stage (Lee et al. 2024, arXiv 2410.14895), and the consistency loss over the whole
    range in the first.

    Both terms are E w(t, r) d(f(x_t, t), f_trunc(x_r, r)), f_trunc the student from t' on and the frozen model of the
    first stage below: L_B over the samples at t', L_C over those above.

    Args:
        neighbours: how x_r follows from x_t, and whose ends are compared.
        student: its denoiser.
        whole, truncated: levels of both stages; None where there is no first.
        boundary_weight: w_b.
        weighting, c: w, and the constant of the pseudo-Huber distance d; None for 0.00054 sqrt(D).
        source: where clean samples come from.
    """

    diagnostics = CONSISTENCY_HEALTH

    def __init__(
        self,
        neighbours: Neighbours,
        student: Denoiser,
        whole: WholeRange | None,
        truncated: TruncatedRange,
        *,
        boundary_weight: float,
        weighting: StepWeightingName,
        c: float | None,
        source: CleanSource,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        self.neighbours, self.whole, self.truncated = neighbours, whole, truncated
        self.first = copy.deepcopy(student).requires_grad_(False)
        self.boundary_weight, self.c = boundary_weight, c
        self.weighting: StepWeightingName = weighting
        self.source: CleanSource = source
        self.needs = (CLEAN[source],)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"first_stage": self.first}

    def begin_stage(self, stage: Stage, student: StudentGenerator) -> None:
        self.first.load_state_dict(student.denoiser.state_dict())

    def __call__(self, step: Step) -> Tensor:
        data, sampler, schedule = step[CLEAN[self.source]], step.student.sampler, self.neighbours.schedule
        assert isinstance(sampler, ConsistencySampler)
        truncated = step.stage.name == TRUNCATED
        self.truncated.highest(schedule, sampler.levels[0])  # refused now, not after the first stage
        levels = self.truncated if truncated or self.whole is None else self.whole
        s, s_next = levels(step, schedule, sampler.levels[0])
        t, r = (schedule.at(level).float().to(step.device) for level in (s, s_next))
        x0, noise = data.sample, step.normal("noise")
        end, target = self.neighbours.ends(
            step.student.denoiser, x0, noise, t, r, data.condition,
            self.below(s_next < self.truncated.boundary) if truncated else None,
        )  # fmt: skip
        log_ends(step, end, target, x0, s)
        weight = step_weight(self.weighting, s, s_next, self.neighbours.sigma_data)
        if truncated:
            weight = weight * self.terms(step)
        return (weight.float().to(step.device) * pseudo_huber(end, target, self.c)).mean()

    def terms(self, step: Step) -> Tensor:
        """What each sample's loss counts in a mean over the batch, (B,): w_b / rho at t', 1 / (1 - rho) above."""
        boundary, rho = self.truncated.at_boundary(step.indices, step.before), self.truncated.share
        return torch.where(boundary, self.boundary_weight / rho, 1 / (1 - rho)).double()

    def below(self, rows: Tensor) -> Callable[[Tensor, Tensor, Condition], Tensor]:
        """f_trunc's network: the frozen first model for these rows, (B,) on the CPU, and the student for the others."""

        def denoise(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            out = torch.empty_like(x)
            for network, mask in ((self.first, rows), (self.neighbours.target, ~rows)):
                chosen = mask.nonzero().flatten()
                # Both are evaluated in every case: processes that hold them in parts must make the same passes.
                seen = (chosen if len(chosen) else torch.zeros(1, dtype=torch.int64)).to(x.device)
                ends = network(x[seen], t[seen], condition.select(seen)).to(out.dtype)
                if len(chosen):
                    out[seen] = ends
            return out

        return denoise
