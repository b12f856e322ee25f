"""Under which protocol a job measures, decided before it begins."""

from __future__ import annotations

from dataclasses import dataclass

from distillkit.contracts.teacher import Teacher
from distillkit.errors import DistillkitError, UsageError
from distillkit.evaluation.measure import Measure, with_examples
from distillkit.evaluation.pipeline import SELECTION_SEED
from distillkit.evaluation.presets import default_protocol, load_measure
from distillkit.runs.config import EvaluationConfig

NONE = "none"
"""What people write for no protocol."""


@dataclass(frozen=True)
class Measures:
    """How a job measures.

    Args:
        closing: the figures at the end, of seeds that no choice has seen; None where nothing can be measured.
        selecting: the figures during the training: fewer samples, of other seeds.
        reason: why nothing can be measured; empty where it can.
    """

    closing: Measure | None = None
    selecting: Measure | None = None
    reason: str = ""

    @property
    def summary(self) -> str:
        """One line for people, before anything begins."""
        if self.closing is None or self.selecting is None:
            return f"no figure of quality will be measured: {self.reason}"
        protocol = self.closing.protocol
        return (
            f"figures: {protocol.label} under {protocol.name} ({protocol.id}); during the training "
            f"{self.selecting.protocol.label}, of other seeds"
        )


def measures_for(teacher: Teacher, config: EvaluationConfig) -> Measures:
    """The protocol that was asked for, or the teacher's own.

    A protocol of the teacher's that is not ready is no reason to stop: what is made can be measured later.

    Raises:
        UsageError, DistillkitError: when the protocol that was asked for cannot be had.
    """
    if config.protocol == NONE:
        return Measures(reason="--protocol none")
    name = config.protocol or default_protocol(teacher)
    if name is None:
        return Measures(
            reason="no protocol is known for this teacher. See `distillkit protocols`, then --protocol NAME; or make a "
            "file of your images with `distillkit reference make`, then --protocol FILE"
        )
    try:
        closing = load_measure(name, count=config.samples, shape=teacher.codec.decoded_shape(teacher.spec.shape))
        if closing.protocol.more_is_better:
            raise UsageError(f"checkpoints are compared by distances, and more is better of what {name} measures")
        closing = with_examples(closing, teacher.conditioner)
    except DistillkitError as error:
        if config.protocol:
            raise
        return Measures(reason=f"the teacher's protocol {name} is not ready: {error}")
    whole = closing.protocol.samples.count
    count = config.evaluate_samples or max(min(1000, whole), whole // 5)
    return Measures(closing, closing.with_samples(count, SELECTION_SEED))
