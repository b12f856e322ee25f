"""Recipes whose student, learners or both train adapters on the teacher's weights, whatever the method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from distillkit.contracts.adapter import AdapterConfig
from distillkit.contracts.denoiser import Denoiser, adapted_in, own_parameters
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.teacher import Teacher
from distillkit.errors import UsageError
from distillkit.models.adapters import Borrower, Lender, base_sha256, copying, layers_of, require_peft


def with_adapters(
    make: Callable[[], Recipe],
    teacher: Teacher,
    student: AdapterConfig | None,
    learners: AdapterConfig | None,
    seed: int = 0,
) -> Recipe:
    """What `make` makes of the teacher, with adapters where the method copies the teacher.

    Networks that a method copies from the student (targets, predecessors) are as the student. Where student and
    learners differ, the recipe is made once before, without any weights of its own, to see which copy is whose.

    Args:
        make: the method's recipe, the same at every call.
        student: of copies that become the student; None for one that is trained in full.
        learners: of copies that become a learner's network.
        seed: of the adapters' first weights.

    Raises:
        UsageError: where there is no copy that could have them, the network has no such layers, or peft is missing.
    """
    if student is None and learners is None:
        return make()
    require_peft()
    sha256, theirs = base_sha256(teacher), frozenset[int]()
    if student is None or learners is None:
        with copying(teacher, Borrower(sha256)):
            theirs = _copies_in_learners(make())
    with copying(teacher, Lender(sha256, lambda number: learners if number in theirs else student, seed)):
        recipe = make()
    if student is not None and not _bases(recipe.student):
        raise UsageError(
            "--student-adapter: this student is no copy of the teacher but a network of its own, which shares no "
            "weights with it; leave the option out"
        )
    if learners is not None and not any(map(_bases, recipe.learners)):
        raise UsageError(
            "--fake-adapter: with these settings the method trains no copy of the teacher beside the student; leave "
            "the option out"
        )
    return recipe


def adapters_of(recipe: Recipe) -> Iterator[str]:
    """A line for each part of a recipe that trains adapters: which, and how many of the weights."""
    for name, part in {"student": recipe.student, **{learner.name: learner for learner in recipe.learners}}.items():
        denoiser = adapted_in(part)
        if denoiser is None or denoiser.adapter is None:
            continue
        trained, every = (sum(p.numel() for p in found) for found in (own_parameters(part), part.parameters()))
        yield (
            f"adapters: {name}: {denoiser.adapter.title} on {len(layers_of(denoiser))} layers "
            f"({_shown(denoiser.adapter.targets)}); {trained:,} of {every:,} weights are trained"
        )


def _shown(targets: Sequence[str], most: int = 8) -> str:
    return ", ".join(targets[:most]) + (", ..." if len(targets) > most else "")


def _copies_in_learners(recipe: Recipe) -> frozenset[int]:
    """The numbers of the copies that learners of a recipe have."""
    return frozenset(number for learner in recipe.learners for number in _bases(learner))


def _bases(module: object) -> frozenset[int]:
    """The numbers of the copies in a module."""
    found = (m.base for m in module.modules() if isinstance(m, Denoiser))  # type: ignore[attr-defined]
    return frozenset(base.number for base in found if base is not None)
