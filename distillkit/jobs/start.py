"""Where the networks of a training begin that goes on from another training's student."""

from __future__ import annotations

from collections.abc import Callable

from distillkit.contracts.denoiser import adapted_in
from distillkit.contracts.learner import ScoreEstimator
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.teacher import Teacher
from distillkit.parallel.strategy import Strategy
from distillkit.students.load import initial_weights
from distillkit.students.scores import initial_score


def start_from(path: str, recipe: Recipe, teacher: Teacher, strategy: Strategy, say: Callable[[str], None]) -> None:
    """Give the student another student's weights, under this recipe's sampler, and score estimators those that were
    trained beside it, where its run has kept them: they know its samples, and the teacher does not.

    Args:
        path: as `initial_weights` takes it.
        say: hears where each network begins.

    Raises:
        UsageError, DistillkitError: as `initial_weights`.
    """
    weights, origin, folder = initial_weights(path, recipe.student.denoiser, teacher)
    strategy.scatter(recipe.student.denoiser, weights)
    say(f"the student starts from {origin}")
    for learner in recipe.learners:
        if not isinstance(learner, ScoreEstimator):
            continue
        # Adapters stand beside weights that they share with the teacher.
        shared = adapted_in(learner.denoiser) is not None
        found = None if shared or folder is None else initial_score(folder, learner.name, learner.denoiser)
        if shared:
            say(f"note: {learner.name} starts from the teacher, as adapters do")
        elif found is None:
            say(f"note: {learner.name} starts from the teacher; none was kept beside this student")
        else:
            strategy.scatter(learner.denoiser, found[0])
            say(f"{learner.name} starts from {found[1]}")
