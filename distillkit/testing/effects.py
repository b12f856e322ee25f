"""Settings and weights have an effect: what a method offers to set is what its training follows."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from distillkit.contracts.method import Method
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.teacher import Teacher
from distillkit.engine.losses import constant, loss_of
from distillkit.errors import DistillkitError
from distillkit.testing.failure import CheckFailure
from distillkit.testing.setup import Parts, Settings, parts_of, settings_of
from distillkit.testing.teachers import smallest, text_to_latent

STEPS = 3
TURNED_ON = 2
"""What a setting that is off is set to, to see what others do beside it."""


def settings_change_the_training(method: type[Method], settings: Settings) -> None:
    """Every setting changes the recipe, a loss, a gradient or an update, by default or in one of the examples."""
    bases = [dict(settings), *(example for example in method.examples if not settings)]
    silent = _silent(method, bases, set(method.Config.model_fields), smallest())
    if silent:
        # Some are for other networks, or of a part that is off by default; where examples name one, they tell.
        told = {name for name in silent if any(name in example for example in method.examples)}
        off = [name for name in sorted(silent) if _is_off(settings_of(method, settings)[name])]
        bases = [dict(settings), *({**settings, name: TURNED_ON} for name in off)]
        silent = told | _silent(method, bases, silent - told, text_to_latent(), may_fail=True)
    if silent:
        raise CheckFailure(
            f"nothing of the training changes with {', '.join(sorted(silent))}",
            "people would set it and compare trainings that are the same",
            "use the setting in the recipe; where it matters together with another alone, add such a case to "
            f"{method.__name__}.examples",
        )


def _silent(
    method: type[Method], bases: Sequence[Settings], names: set[str], teacher: Teacher, *, may_fail: bool = False
) -> set[str]:
    """Those of the settings with these names that change nothing in any of the bases where they can be changed; what
    cannot be made of a base is passed over where it may fail."""
    changed: set[str] = set()
    for base in bases:
        if not names:
            break
        try:
            at_base = [*_fingerprint(method, base, teacher)]
        except (ValidationError, DistillkitError, ValueError):
            if not may_fail:
                raise
            continue
        found = {name: _has_effect(method, base, name, at_base, teacher) for name in names}
        names = {name for name, effect in found.items() if not effect}
        changed |= {name for name, effect in found.items() if effect is False}
    return names & changed


def _is_off(value: Any) -> bool:
    return value == 0 and not isinstance(value, bool)


def weights_belong_to_the_engine(method: type[Method], settings: Settings) -> None:
    """An objective's loss does not depend on its weight, which the engine multiplies it by."""
    parts = parts_of(method, smallest(), settings, apart=True)
    for objective in parts.recipe.objectives:
        losses = []
        for factor in (1.0, 2.0):
            before = objective.weight
            objective.weight = factor * (before or 1.0)
            with torch.no_grad(), constant([p for learner in parts.recipe.learners for p in learner.parameters()]):
                losses.append(loss_of(objective, parts.step()).item())
            objective.weight = before
        if losses[0] != losses[1]:
            raise CheckFailure(
                f"the loss of {objective.name} is {losses[1] / losses[0]:.3g} times as large with twice the weight",
                "the engine multiplies every objective by its weight: it would count twice",
                "return the loss without the weight",
            )


def _has_effect(method: type[Method], base: Settings, name: str, at_base: list[Any], teacher: Teacher) -> bool | None:
    """Whether another value of a setting, the first that makes a difference, changes anything; also where there is no
    other value to try. None where all others are refused beside the base's.

    A number is changed from one that is not 0: that 0 turns something off says nothing of all the others.
    """
    value, usable, refused = settings_of(method, base)[name], False, False
    if _is_off(value):
        base = {**base, name: 0.5 if isinstance(value, float) else 1}
        try:
            at_base = [*_fingerprint(method, base, teacher)]
        except (ValidationError, DistillkitError, ValueError):
            return False
        value = base[name]
    given = [example[name] for example in method.examples if name in example]
    for other in [*_alternatives(value, method.Config.model_fields[name].annotation)] or given:
        try:
            if _differs(_fingerprint(method, {**base, name: other}, teacher), at_base):
                return True
        except (ValidationError, DistillkitError, ValueError):
            refused = True  # out of bounds, or not for this teacher
            continue
        usable = True
    return False if usable else None if refused else True


def _alternatives(value: Any, annotation: Any) -> Iterator[Any]:
    """Other values that a setting of this type may have."""
    if typing.get_origin(annotation) is Literal:
        yield from (other for other in typing.get_args(annotation) if other != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, 2 * value, max(value - 1, 1))
    elif isinstance(value, float):
        yield from (2 * value, value / 2)
    elif isinstance(value, list | tuple) and all(isinstance(item, int | float) for item in value):
        yield [0.5 * item for item in value]
    elif value is None and typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for inner in typing.get_args(annotation):
            start = {float: 0.01, int: 2, bool: False}.get(inner)
            if inner is bool:
                yield True
            if start is not None:
                yield start
            elif typing.get_origin(inner) is Literal:
                yield from typing.get_args(inner)


def _fingerprint(method: type[Method], settings: Settings, teacher: Teacher) -> Iterator[Any]:
    """What the engine would do, and then all numbers of a few steps of plain gradient descent in the first stage and in
    the last, as they come."""
    parts = parts_of(method, teacher, settings, apart=True)
    recipe = parts.recipe
    yield _structure(recipe)
    yield from _numbers(parts)
    if len(recipe.stages) > 1:
        parts.begin(len(recipe.stages) - 1)
        yield from _numbers(parts)


def _numbers(parts: Parts) -> Iterator[Tensor]:
    """Losses, logged values and weights of a few steps in the stage that has begun."""
    recipe = parts.recipe
    for index in range(STEPS):
        step = parts.step(index)
        loss = parts.student_loss(step)
        yield loss.detach().clone()
        if loss.requires_grad:
            _descend(loss, recipe.student)
        step.release()
        for learner in recipe.learners:
            loss = loss_of(learner, step)
            yield loss.detach().clone()
            _descend(loss, learner)
        for objective in recipe.objectives:
            objective.after_step(step)
        yield from (value for _, value in sorted(step.logged.items()))
    for module in parts.networks.values():
        yield from (parameter.detach().clone() for parameter in module.parameters())


def _structure(recipe: Recipe) -> str:
    """What the engine follows besides losses."""
    stages = [(stage.name, stage.share, stage.sampler) for stage in recipe.stages]
    objectives = [(objective.name, objective.weight) for objective in recipe.objectives]
    learners = [(learner.name, learner.every, learner.optimizer) for learner in recipe.learners]
    needs = sorted(need.__name__ for need in recipe.needs)
    return repr((stages, objectives, learners, needs, recipe.student.sampler, recipe.student_every))


def _descend(loss: Tensor, module: nn.Module, rate: float = 1e-2) -> None:
    """One step of normalised gradient descent."""
    weights = [p for p in module.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    there = [(p, g) for p, g in zip(weights, gradients, strict=True) if g is not None]
    size = torch.stack([g.norm() for _, g in there]).norm().clamp(min=1e-12) if there else torch.ones(())
    with torch.no_grad():
        for parameter, gradient in there:
            parameter.sub_(rate * gradient / size)


def _differs(found: Iterable[Any], expected: Sequence[Any]) -> bool:
    """Whether two fingerprints differ; no more of the first is computed than it takes to see it."""
    missing = object()
    return not all(_equal(a, b) for a, b in zip_longest(found, expected, fillvalue=missing))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)
