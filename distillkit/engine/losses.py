"""Losses of objectives and learners, with a name on everything that can go wrong in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from distillkit.contracts.learner import Learner
from distillkit.contracts.objective import Objective
from distillkit.contracts.step import Draws
from distillkit.errors import DistillkitError


def loss_of(part: Objective | Learner, step: Draws) -> Tensor:
    """The loss of an objective or learner, with its name on everything that can go wrong in it.

    Raises:
        DistillkitError: when it fails, or returns anything but a scalar tensor.
    """
    # What is trained beside a student reads its step; what is trained alone has none, and reads what is drawn.
    compute: Callable[[Any], Tensor] = part.loss if isinstance(part, Learner) else part
    try:
        loss = compute(step)
    except DistillkitError:
        raise
    except Exception as error:  # a plugin may fail in any way
        raise DistillkitError(
            f"{part.name} ({type(part).__module__}.{type(part).__qualname__}) failed at step {step.index + 1}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(loss, Tensor) or loss.ndim:
        shape = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{type(loss).__name__}"
        raise DistillkitError(
            f"{part.name} ({type(part).__module__}.{type(part).__qualname__}) returned {shape}; a loss is a scalar "
            "tensor, the mean over the step's samples"
        )
    return loss


def require_gradient(loss: Tensor, what: str, where: str) -> Tensor:
    """The loss, if it can be trained on.

    Raises:
        DistillkitError: when no gradient would flow.
    """
    if not loss.requires_grad:
        raise DistillkitError(f"no gradient flows from {what} to {where}")
    return loss


@contextmanager
def constant(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Keep gradients of the student's loss out of these parameters; they still pass through the networks."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
