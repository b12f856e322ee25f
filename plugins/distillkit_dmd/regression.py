"""The regression objective: stay close to the teacher's own samples from the same noise."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from distillkit import Diagnostic, Objective, Step
from distillkit.diffusion import Distance, l2, pseudo_huber


class Regression(Objective):
    """distance(G(z, c), y) on noise-image pairs (z, c, y) of the teacher's ODE (Yin et al. 2024, Eq. 9)."""

    needs = ("pairs", "pair_samples")
    diagnostics = (
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

    def __init__(self, distance: str, *, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.distance_name = distance

    @cached_property
    def distance(self) -> Distance:
        """The distance of that name; LPIPS loads its backbone."""
        return distance_by_name(self.distance_name)

    def prepare(self) -> None:
        _ = self.distance

    def __call__(self, step: Step) -> Tensor:
        made, wanted = step.pair_samples, step.pairs.sample
        with torch.no_grad():
            step.log("std_to_teacher", made.std() / wanted.std())
            step.log("mean_to_teacher", (made.mean() - wanted.mean()) / wanted.std())
        return self.distance(made, wanted).mean()


def distance_by_name(name: str) -> Distance:
    """ "l2", "pseudo-huber", or "lpips" (VGG backbone at 224 pixels)."""
    if name == "lpips":
        from distillkit_dmd.perceptual import LPIPS

        return LPIPS.pretrained()
    return {"l2": l2, "pseudo-huber": pseudo_huber}[name]
