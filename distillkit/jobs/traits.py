"""What a method takes, computed from its recipe on a small teacher, so that everyone's methods can be compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from distillkit.contracts.recipe import Recipe
from distillkit.contracts.sampler import Sampler
from distillkit.contracts.source import batch_types
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher
from distillkit.engine.networks import Networks
from distillkit.jobs.recipe import recipe_of
from distillkit.jobs.trial import forward_equivalents
from distillkit.registry import Installed, blaming
from distillkit.runs.config import resolve


@dataclass(frozen=True)
class Traits:
    """What a training and its student take.

    Args:
        data: types of the batches that are read: "images", "pairs"; none for methods that make all they need.
        networks: beside teacher, student and the student's moving average, by name; trained ones say so.
        memory: all weights that are held, with the gradients and Adam's moments of the trained ones, over the teacher's
            weights; without activations.
        passes: forward-equivalents of training on one image, the mean of all stages; what pairs cost comes on top.
        evaluations: of the network for one sample of the student.
        more: whether the same student can be sampled with other numbers of evaluations.
    """

    data: tuple[str, ...]
    networks: tuple[str, ...]
    memory: float
    passes: float
    evaluations: int
    more: bool

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        """As people read it, in the order of `COLUMNS`."""
        return (
            " and ".join(self.data) or "none",
            ", ".join(self.networks) or "none",
            f"{self.memory:.1f}",
            f"{self.passes:.1f}",
            f"{self.evaluations}{' or more' if self.more else ''}",
        )


COLUMNS = ("data", "other networks", "memory", "passes an image", "evaluations")
MEANING = (
    "memory: weights, gradients and Adam's moments, in sizes of the teacher; passes: forward-equivalents of training "
    "(an evaluation with gradient counts three), pairs on top; evaluations: of the student, for a sample"
)


def traits_of(method: Installed, teacher: Teacher) -> Traits:
    """What a method takes on a teacher, with the settings of a run without options; a few steps are taken for it.

    The teacher is not changed.

    Raises:
        DistillkitError: where the method cannot make its recipe or take a step.
    """
    with blaming(f"method {method.name}", method.origin, "cannot be tried"):
        return _traits_of(method, teacher)


def _traits_of(method: Installed, teacher: Teacher) -> Traits:
    config = resolve(method.value, teacher_name=teacher.spec.name)[0]
    recipe = recipe_of(config, method, teacher)
    for objective in recipe.objectives:
        objective.prepare()
    average = StudentGenerator.from_teacher(teacher).requires_grad_(False)
    networks = Networks(recipe, teacher, average)
    total, trained = networks.weight_bytes()
    own = sum(p.numel() * p.element_size() for p in teacher.denoiser.parameters())
    owned = [pair for objective in recipe.objectives for pair in objective.modules().items()]
    names = [f"{learner.name} (trained)" for learner in recipe.learners]
    names += [name for name, module in owned if any(True for _ in module.parameters())]
    evaluations, more = _evaluations(recipe, teacher)
    passes = forward_equivalents(recipe, teacher, Accelerator(cpu=True))
    return Traits(
        tuple(sorted(kind.__name__.lower() for kind in batch_types(recipe.needs))),
        tuple(name.replace("_", " ") for name in names),
        (own + total + 3 * trained) / own,
        sum(passes.values()),
        evaluations,
        more,
    )


def _evaluations(recipe: Recipe, teacher: Teacher) -> tuple[int, bool]:
    """Of the network for a sample, counted; and whether there is a choice."""
    student, sampler = recipe.student, recipe.final_sampler
    keys = teacher.conditioner.draw(torch.zeros(1, dtype=torch.float64))
    condition, noise = teacher.conditioner.encode(keys), torch.zeros(1, *student.shape)
    with _counted(student) as count, torch.no_grad():
        sampler(student.denoiser, noise, condition, lambda k: noise)
    return len(count), _has_choice(sampler, student)


@contextmanager
def _counted(student: StudentGenerator) -> Iterator[list[None]]:
    calls: list[None] = []
    handle = student.denoiser.register_forward_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        handle.remove()


def _has_choice(sampler: Sampler, student: StudentGenerator) -> bool:
    try:
        return sampler.with_nfe(2, student.denoiser) is not None
    except ValueError:
        return False
