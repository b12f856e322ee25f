"""Learners: modules trained beside the student, each with its own optimiser. Score estimators are the usual kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.health import Diagnostic
from distillkit.contracts.source import Samples
from distillkit.contracts.teacher import Teacher

if TYPE_CHECKING:
    from distillkit.contracts.step import Step


class OptimizerConfig(BaseModel):
    """How one set of parameters is optimised."""

    model_config = ConfigDict(extra="forbid")

    optimizer: Literal["adam", "adamw", "radam", "adamw8bit"] = Field(
        "adamw", description="update rule; adamw8bit keeps moments in 8 bits and needs torchao"
    )
    lr: float = Field(1e-4, gt=0, le=1, description="learning rate after warm-up")
    eps: float = Field(1e-8, gt=0, le=1, description="term that keeps the update finite where gradients vanish")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the second moment")
    weight_decay: float = Field(0.01, ge=0, description="weight decay (decoupled in adamw)")
    clip_grad_norm: float = Field(10.0, gt=0, description="gradients are scaled down to this norm")


class Learner(nn.Module, ABC):
    """A module trained beside the student.

    Attributes:
        name: unique in its recipe; names its entries in checkpoints and logs.
        optimizer: settings that differ from the student's: `OptimizerConfig(lr=1e-3)` changes the rate alone, since
            only what was given counts.
        every: it is updated in every `every`-th step.
        needs: what `loss` reads of the step: `Samples`, `PairSamples` and types of batches, such as `Images`.
        diagnostics: logged values with the ranges they keep to in a healthy run.
        whole_networks: as an objective's.
    """

    name: str = "learner"
    needs: Sequence[type] = ()
    diagnostics: Sequence[Diagnostic] = ()
    whole_networks: str = ""

    def __init__(self, *, optimizer: OptimizerConfig | None = None, every: int = 1) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.every = every

    @abstractmethod
    def loss(self, step: Step) -> Tensor:
        """Scalar loss of this learner in the step; must not send gradients into the student."""


class ScoreEstimator(Learner):
    """A denoiser trained on the student's samples; its denoising direction is the score of their distribution.

    Subclasses say with which noise levels and weights by implementing `loss`.
    """

    name = "score_estimator"
    needs: Sequence[type] = (Samples,)

    def __init__(self, denoiser: Denoiser, *, optimizer: OptimizerConfig | None = None, every: int = 1) -> None:
        super().__init__(optimizer=optimizer, every=every)
        self.denoiser = denoiser

    @classmethod
    def from_teacher(cls, teacher: Teacher, *, optimizer: OptimizerConfig | None = None, every: int = 1) -> Self:
        """A score estimator that starts as a copy of the teacher."""
        return cls(teacher.copy_denoiser(), optimizer=optimizer, every=every)

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Denoise x (B, ...) at t (B,); returns x0 of x's shape."""
        return self.denoiser(x, t, condition)
