"""The regression objective: stay close to the teacher's own samples from the same noise."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.contracts.health import Diagnostic
from distillkit.contracts.objective import Objective
from distillkit.contracts.source import Pairs, PairSamples
from distillkit.contracts.step import Step
from distillkit.parts.distances import NamedDistance

MOMENTS = (
    Diagnostic(
        "std_to_teacher",
        ok=(0.8, 1.15),
        watch=(0.4, 2.0),
        meaning="standard deviation of the student's samples over the teacher's from the same noise; towards 0 the "
        "samples lose their variety or contrast, above 1 they are over-saturated",
    ),
    Diagnostic(
        "mean_to_teacher",
        ok=(-0.1, 0.1),
        watch=(-0.5, 0.5),
        meaning="mean of the student's samples minus the teacher's, in units of the teacher's standard deviation; "
        "a drift shows as a change of brightness",
    ),
)
"""Of whatever compares a student's samples with the teacher's from the same noise: what `log_moments` logs."""


@torch.no_grad()
def log_moments(step: Step, made: Tensor, wanted: Tensor) -> None:
    """Log what `MOMENTS` judges, from the student's samples (B, ...) and those that they are to be."""
    step.log("std_to_teacher", made.std() / wanted.std())
    step.log("mean_to_teacher", (made.mean() - wanted.mean()) / wanted.std())


class Regression(Objective):
    """E d(G(z, c), y) on noise-image pairs (z, c, y) of the teacher's ODE (Luhman & Luhman 2021, Eq. 11; Yin et al.
    2024, Eq. 9)."""

    needs = (Pairs, PairSamples)
    diagnostics = MOMENTS

    def __init__(self, distance: NamedDistance, *, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.distance, self.remark, self.detail = distance, distance.remark, distance.detail

    def prepare(self) -> None:
        self.distance.prepare()

    @property
    def frozen_bytes(self) -> int:
        return self.distance.frozen_bytes

    def __call__(self, step: Step) -> Tensor:
        made, wanted = step.pair_samples, step.pairs.sample
        log_moments(step, made, wanted)
        return self.distance(made, wanted).mean()
