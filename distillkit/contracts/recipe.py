"""Recipes: what a method is, once it is given a teacher and a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from distillkit.contracts.learner import Learner
from distillkit.contracts.objective import Objective
from distillkit.contracts.sampler import Sampler
from distillkit.contracts.stage import Stage
from distillkit.contracts.student import StudentGenerator


@dataclass
class Recipe:
    """Student, objectives, learners and stages.

    Args:
        student: the generator to train.
        objectives: the terms of its loss; at least one.
        learners: modules trained beside it.
        stages: parts of the training, in order.
        student_every: the student is updated in every `student_every`-th step, the learners in all.
        guidance: guidance weight that the student learns in; None where it is that of the data which it reads.
        guided: guidance weights of networks that are trained here, by the names of their settings; other weights than
            1 need a teacher that also predicts without a condition (`conditioner.has_null`).
        starts_as_teacher: why the student must begin with the teacher's weights, as a person is told who asks for
            another beginning; "" where it need not.

    Raises:
        ValueError: for no objective, no stage, or two parts of one name.
    """

    student: StudentGenerator
    objectives: Sequence[Objective]
    learners: Sequence[Learner] = ()
    stages: Sequence[Stage] = field(default_factory=lambda: (Stage(),))
    student_every: int = 1
    guidance: float | None = None
    guided: Mapping[str, float] = field(default_factory=dict)
    starts_as_teacher: str = ""

    def __post_init__(self) -> None:
        if not self.objectives or not self.stages:
            raise ValueError("a recipe needs at least one objective and one stage")
        names = ["student", "average", "teacher", "guide", *(part.name for part in self.parts)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two parts of the recipe are named {', '.join(sorted(twice))}; set `name` on one")

    @property
    def parts(self) -> list[Objective | Learner]:
        """The objectives and then the learners."""
        return [*self.objectives, *self.learners]

    @property
    def final_sampler(self) -> Sampler:
        """The sampler that the student ends with."""
        return next((s.sampler for s in reversed(self.stages) if s.sampler), self.student.sampler)

    @property
    def needs(self) -> frozenset[type]:
        """All that the objectives and learners declare to read of a step."""
        return frozenset(need for part in self.parts for need in part.needs)
