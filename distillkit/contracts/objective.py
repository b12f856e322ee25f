"""Objectives: the terms of a student's loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.contracts.health import Diagnostic
from distillkit.contracts.random import SampleRNG

if TYPE_CHECKING:
    from distillkit.contracts.stage import Stage
    from distillkit.contracts.step import Step
    from distillkit.contracts.student import StudentGenerator


class Objective(ABC):
    """One term of the student's loss: `weight` times a scalar that `__call__` computes from the step.

    Attributes:
        name: unique in its recipe; the class name in snake case by default.
        needs: what `__call__` reads of the step: `Samples`, `PairSamples` and types of batches: `(Pairs, Images)`.
            The engine opens the sources behind them and runs the student once for all that need its samples.
        diagnostics: logged values with the ranges they keep to in a healthy run.
        remark: what belongs beside the student's figures: "trained with LPIPS, whose features favour Inception's".
        whole_networks: why it needs networks whole on every process, "R1 at the samples differentiates twice"; empty
            where they may be spread over devices in parts.
        detail: what a plan says of it beside its name: "lpips of decoded images".
    """

    name: str = ""
    needs: Sequence[type] = ()
    diagnostics: Sequence[Diagnostic] = ()
    remark: str = ""
    detail: str = ""
    whole_networks: str = ""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = "".join(f"_{c.lower()}" if c.isupper() else c for c in cls.__name__).lstrip("_")

    @abstractmethod
    def __call__(self, step: Step) -> Tensor:
        """The scalar loss, a mean over the step's samples, with gradients to the student alone."""

    def prepare(self) -> None:
        """Called exactly once, before all that is costly: load here what takes a download or much time.

        Raises:
            DistillkitError: when it cannot be had; the run ends before it began.
        """

    def modules(self) -> Mapping[str, nn.Module]:
        """Networks that this objective owns and changes (an EMA target, a frozen reference): they are moved to
        the device, checkpointed and restored. Not the teacher, not a learner."""
        return {}

    @property
    def frozen_bytes(self) -> int:
        """Of weights that it holds in memory and never changes, such as those of a perceptual distance; known once it
        has been prepared."""
        return 0

    def begin_stage(self, stage: Stage, student: StudentGenerator) -> None:
        """Called before the first step of every stage, not on resuming within it."""

    def after_step(self, step: Step) -> None:
        """Called after the optimisers' updates of every step in which the student was due."""

    def previews(self, samples: Tensor, condition: Condition, rng: SampleRNG) -> Mapping[str, Tensor]:
        """Samples that show this objective at work, each (B, ...) beside the student's; decoded for people."""
        return {}
