"""The objective: the student's output follows its own tangent."""

from __future__ import annotations

from torch import Tensor

from distillkit import Diagnostic, Objective, Step
from distillkit.diffusion import l2
from distillkit.parts import CLEAN, STD_TO_DATA
from distillkit_scm.tangents import Tangents
from distillkit_scm.weight import AdaptiveWeight


class ContinuousConsistency(Objective):
    """E exp(w_phi(t)) / (sigma_d tan(t)) |F - sg(F) - g|^2 / D - w_phi(t), g the normalised tangent
    (Lu & Song 2024, Eq. 8 and Algorithm 1, with the prior weight of section 4.2).

    Its value is that of a constant, its gradient the tangent's: the loss does not fall, the tangent does.

    Args:
        tangents: what g is.
        adaptive: w_phi; None weighs by the prior alone.
    """

    diagnostics = (
        STD_TO_DATA,
        Diagnostic(
            "tangent_rms",
            ok=(0.0, 2.0),
            watch=(0.0, 20.0),
            meaning="size of the tangent before it is normalised, per number of a sample; it grows where training is "
            "unstable: lower the learning rate, raise --tangent-warmup, or narrow the levels",
        ),
    )

    def __init__(self, tangents: Tangents, adaptive: AdaptiveWeight | None) -> None:
        super().__init__()
        self.tangents, self.adaptive = tangents, adaptive
        self.needs = (CLEAN[tangents.source],)

    def __call__(self, step: Step) -> Tensor:
        return self.losses(*self.tangents(step)).mean()

    def losses(self, level: Tensor, out: Tensor, tangent: Tensor) -> Tensor:
        """The loss of each sample, (B,), from ln(sigma / alpha) (B,), F and g (B, ...)."""
        error = l2(out, out.detach() + tangent) / level.exp()
        if self.adaptive is None:
            return error
        w = self.adaptive(level)
        return w.exp() * error - w
