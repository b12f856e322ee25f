"""R1: a discriminator that is flat around real data cannot run away from the generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from distillkit.contracts.condition import Condition

R1Name = Literal["approximate", "features", "inputs"]


class Judge(Protocol):
    """What R1 asks of a discriminator: features of noisy samples, and logits (B, N) of them."""

    @property
    def head(self) -> nn.Module: ...

    def features(self, x: Tensor, noise: Tensor, t: Tensor, condition: Condition) -> list[Tensor]: ...


def gradient_penalty(logits: Tensor, points: Sequence[Tensor]) -> Tensor:
    """E |dD/dx|^2 (Mescheder et al. 2018, arXiv 1801.04406, Eq. 9), D the mean of a sample's logits (B, N).

    Args:
        points: what the logits were computed from, each (B, ...); their gradients are added up.

    Returns:
        A scalar with gradient to the discriminator, by differentiating twice.
    """
    gradients = torch.autograd.grad(logits.float().mean(1).sum(), list(points), create_graph=True)
    return torch.stack([g.float().square().flatten(1).sum(1) for g in gradients]).sum(0).mean()


def finite_difference_penalty(logits: Tensor, nearby: Tensor, spread: float) -> Tensor:
    """E |D(x + s n) - D(x)|^2 / s^2 with standard normal n (Lin et al. 2025, APT, arXiv 2501.08316, Eq. 5): E |dD/dx|^2
    for small s, by differentiating once.

    Their weight lambda = 100 for s = 0.01 is lambda s^2 = 0.01 here: the penalty is divided by s^2, so that a weight
    means the same for every way to compute it.

    Args:
        logits: (B, N) of x. nearby: (B, N) of x + s n. spread: s.
    """
    return ((nearby - logits).float().mean(1) / spread).square().mean()


@dataclass(frozen=True)
class R1:
    """gamma E |dD/dx|^2 on real samples x, beside the discriminator's loss.

    Args:
        weight: gamma; 0 turns it off.
        kind: "approximate", by a finite difference with one more pass without a second derivative, which attention's
            fast kernels do not have; "features", the exact gradient at the inputs of the heads (Sauer et al. 2023,
            arXiv 2311.17042, section 3.2); "inputs", the exact gradient at the samples.
        spread: s of the finite difference, in the samples' units.
    """

    weight: float = 0.0
    kind: R1Name = "approximate"
    spread: float = 0.01

    def __call__(
        self, judge: Judge, x: Tensor, noise: Tensor, t: Tensor, condition: Condition, nearby: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, N) of real samples x (B, ...), and the weighted penalty, a scalar.

        Args:
            noise, t: x is judged with noise at t (B,).
            nearby: draws standard normal noise (B, ...) for the finite difference.
        """
        x = x.detach()
        if self.weight and self.kind == "inputs":
            x.requires_grad_()
        with _twice_differentiable() if x.requires_grad else nullcontext():
            features = judge.features(x, noise, t, condition)
            if self.weight and self.kind == "features":
                features = [f if f.requires_grad else f.requires_grad_() for f in features]
            logits: Tensor = judge.head(features)
            if not self.weight:
                return logits, logits.new_zeros(())
            if self.kind == "approximate":
                moved = judge.head(judge.features(x + self.spread * nearby(), noise, t, condition))
                return logits, self.weight * finite_difference_penalty(logits, moved, self.spread)
            points = [x] if self.kind == "inputs" else features
            return logits, self.weight * gradient_penalty(logits, points)


def _twice_differentiable() -> AbstractContextManager[None]:
    """Attention by plain products, which can be differentiated twice."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found: AbstractContextManager[None] = sdpa_kernel([SDPBackend.MATH])
    return found
