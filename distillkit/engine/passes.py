"""Losses of a step and their gradients, one graph in memory at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator

from distillkit.contracts.learner import Learner
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.step import Draws, Step
from distillkit.engine.losses import constant, loss_of, require_gradient
from distillkit.engine.metrics import Means
from distillkit.engine.optimization import Updater
from distillkit.engine.precision import autocast


@dataclass(frozen=True)
class Part:
    """What one pass takes of a step's batch.

    Args:
        indices: the samples' places in the total batch.
        share: of this process' part of the batch.
        last: whether no other pass of the step follows.
    """

    indices: range
    share: float
    last: bool


class Passes:
    """The student's pass and the learners', each from its loss to its gradient.

    Args:
        means: take the losses.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator, means: Means) -> None:
        self.accelerator, self.means = accelerator, means
        self.objectives = [objective for objective in recipe.objectives if objective.weight]
        self.learnt = [p for learner in recipe.learners for p in learner.parameters() if p.requires_grad]

    def student(self, step: Step, part: Part, updater: Updater) -> None:
        """Losses of the objectives and the student's gradient; then its graph is let go."""
        # Also in the backward pass, which computes passes anew under gradient checkpointing.
        with constant(self.learnt):
            with autocast(self.accelerator):
                terms = {o.name: loss_of(o, step) * o.weight for o in self.objectives}
            total = require_gradient(
                sum(terms.values(), start=torch.zeros((), device=step.device)),
                f"the objectives ({', '.join(terms)})",
                "the student: compute losses from step.student, step.samples or step.pair_samples, not detached",
            )
            updater.backward(total * part.share, last=part.last)
        for name, term in terms.items():
            self.means.add(f"loss/{name}", term, part.share)
        step.release()

    def learner(self, learner: Learner, step: Step, part: Part, updater: Updater) -> None:
        """Loss and gradient of a learner."""
        learner_pass(learner, step, part, updater, self.accelerator, self.means)


def learner_pass(
    learner: Learner, step: Draws, part: Part, updater: Updater, accelerator: Accelerator, means: Means
) -> None:
    """Loss and gradient of a learner, beside a student or alone.

    Args:
        part: of the step's batch.
        means: take the loss.
    """
    with autocast(accelerator):
        loss = loss_of(learner, step)
    means.add(f"loss/{learner.name}", loss, part.share)
    require_gradient(loss, f"the loss of the learner {learner.name}", "its own parameters")
    updater.backward(loss * part.share, last=part.last)
