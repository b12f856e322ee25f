"""What networks are asked: every evaluation of every denoiser while a context lasts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.learner import Learner
from distillkit.contracts.random import SampleRNG
from distillkit.contracts.student import StudentGenerator
from distillkit.engine.losses import loss_of
from distillkit.testing.setup import Parts


@dataclass(frozen=True)
class Call:
    """One evaluation of a denoiser.

    Args:
        network: the denoiser.
        x, t, condition: what it was asked.
        sampling: whether the student's sampler asked.
        partial: whether only features were asked for.
        outer: the denoisers inside of whose evaluation this one is.
    """

    network: Denoiser
    x: Tensor
    t: Tensor
    condition: Condition
    sampling: bool
    partial: bool
    outer: tuple[Denoiser, ...]


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """Every evaluation of every denoiser there is, known to the engine or not."""
    calls: list[Call] = []
    stack: list[Denoiser] = []
    sampling = [0]
    evaluate = Denoiser.__call__

    def asked(self: Denoiser, x: Tensor, t: Tensor, condition: Condition, *rest: Any, **named: Any) -> Any:
        with torch.no_grad():
            call = Call(
                self, x.detach().clone(), t.detach().clone(), condition, bool(sampling[0]), bool(self.partial),
                tuple(stack),
            )  # fmt: skip
        calls.append(call)
        stack.append(self)
        try:
            return evaluate(self, x, t, condition, *rest, **named)
        finally:
            stack.pop()

    def sampled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(function)
        def sample(*args: Any, **named: Any) -> Tensor:
            sampling[0] += 1
            try:
                return function(*args, **named)
            finally:
                sampling[0] -= 1

        return sample

    with (
        _replaced(Denoiser, "__call__", asked),
        _replaced(StudentGenerator, "forward", sampled(StudentGenerator.forward)),
        _replaced(StudentGenerator, "training_samples", sampled(StudentGenerator.training_samples)),
    ):
        yield calls


@contextmanager
def recorded_draws() -> Iterator[list[str]]:
    """The purposes of all draws, in their order."""
    purposes: list[str] = []

    def noted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def draw(self: SampleRNG, purpose: str, *rest: Any) -> Tensor:
            purposes.append(purpose)
            return function(self, purpose, *rest)

        return draw

    with (
        _replaced(SampleRNG, "normal", noted(SampleRNG.normal)),
        _replaced(SampleRNG, "uniform", noted(SampleRNG.uniform)),
    ):
        yield purposes


def calls_of_step(parts: Parts, index: int) -> dict[str, list[Call]]:
    """All evaluations that each part asks for in one step, without an update."""
    found = {}
    for objective in parts.recipe.objectives:
        with recorded() as calls:
            parts.student_loss(parts.step(index), [objective])
        found[objective.name] = calls
    for learner in parts.recipe.learners:
        step = parts.step(index)
        step.release()
        with recorded() as calls:
            loss_of(learner, step)
        found[learner.name] = calls
    return found


def names_of(parts: Parts) -> Mapping[int, str]:
    """What the recipe's networks are called, by identity."""
    names = {id(parts.teacher.denoiser): "the teacher", id(parts.recipe.student.denoiser): "the student"}
    for name, module in parts.networks.items():
        for inner in module.modules():
            if isinstance(inner, Denoiser):
                what = "learner" if isinstance(module, Learner) else "network"
                names.setdefault(id(inner), f"the {what} {name}")
    return names


@contextmanager
def _replaced(owner: type[Any], name: str, value: Any) -> Iterator[None]:
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)  # what the base class has remains
