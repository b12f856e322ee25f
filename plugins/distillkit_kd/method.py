"""The method: its settings and its recipe."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from distillkit import (
    Denoiser,
    Method,
    MethodConfig,
    OneStep,
    Recipe,
    StudentGenerator,
    Teacher,
    UsageError,
    build_denoiser,
    changed_network,
    typed_values,
)
from distillkit.parts import DistanceName, Regression, distance_for
from distillkit_kd.presets import PRESETS


def read_mapping(value: Any) -> Any:
    """A mapping from text as the command line has it, YAML or JSON; other values pass through to pydantic."""
    if not isinstance(value, str):
        return value
    return typed_values(value)


class KDConfig(MethodConfig):
    """Settings of knowledge distillation."""

    distance: DistanceName = Field("l2", description="distance to the teacher's sample")
    student_network: Annotated[dict[str, Any] | None, BeforeValidator(read_mapping)] = Field(
        None,
        description="changes to the arguments of the teacher's network for another student, which starts with fresh "
        "weights, such as '{model_channels: 16}'; the teacher's network and weights if none",
    )


class KnowledgeDistillation(Method):
    """One-step student that regresses the teacher's samples from their noise (Luhman & Luhman 2021)."""

    name = "kd"
    Config = KDConfig
    presets = PRESETS
    caution = (
        "It is bound to its pairs: from few it learns these alone, and l2 averages over what one evaluation "
        "cannot tell apart."
    )
    examples = ({"distance": "l1"}, {"distance": "pseudo-huber"}, {"student_network": {}})

    def recipe(self, teacher: Teacher, config: KDConfig) -> Recipe:
        denoiser = teacher.copy_denoiser()
        if config.student_network is not None:
            denoiser = other_network(denoiser, config.student_network)
        student = StudentGenerator(denoiser, OneStep(), teacher.spec.shape)
        return Recipe(student, [Regression(distance_for(teacher, config.distance))])


def other_network(denoiser: Denoiser, changes: dict[str, Any]) -> Denoiser:
    """A network with other arguments than this denoiser's, and fresh weights.

    Raises:
        UsageError: where the denoiser does not say how it was built, or has no such argument.
    """
    if denoiser.description is None:
        raise UsageError(
            f"student_network: the network {type(denoiser).__name__} does not say how it was built, so no other can be "
            "built like it; its teacher needs `build_denoiser`"
        )
    return build_denoiser(changed_network(denoiser.description, changes)).eval()
