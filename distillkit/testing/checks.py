"""All checks by name. Each takes a method class and settings beside its defaults, and raises `CheckFailure`: what is
wrong, why it matters, and how to correct it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from distillkit.contracts.method import Method
from distillkit.testing.adapters import adapters_can_be_trained
from distillkit.testing.constraints import constraints_hold_after_updates
from distillkit.testing.declarations import (
    config_round_trips,
    every_pass_is_counted,
    needs_are_what_is_used,
    presets_are_valid,
)
from distillkit.testing.effects import settings_change_the_training, weights_belong_to_the_engine
from distillkit.testing.exactness import resume_is_exact, steps_are_deterministic, steps_do_not_depend_on_the_split
from distillkit.testing.gradients import (
    gradients_reach_the_student_alone,
    learners_leave_the_student_alone,
    recipe_builds_for_every_teacher,
    works_in_bfloat16,
)
from distillkit.testing.jobs import runs_end_to_end
from distillkit.testing.noise import (
    inputs_fit_their_levels,
    levels_and_conditions_vary,
    schedules_are_respected,
    score_estimators_follow_the_student,
    streams_are_separate,
)
from distillkit.testing.setup import Settings
from distillkit.testing.spread import networks_may_be_held_in_parts
from distillkit.testing.truth import moves_to_the_teachers_distribution

Check = Callable[[type[Method], Settings], None]

CHECKS: Mapping[str, Check] = {
    check.__name__: check
    for check in (
        config_round_trips, presets_are_valid, recipe_builds_for_every_teacher, gradients_reach_the_student_alone,
        learners_leave_the_student_alone, weights_belong_to_the_engine, settings_change_the_training,
        levels_and_conditions_vary, inputs_fit_their_levels, schedules_are_respected, streams_are_separate,
        score_estimators_follow_the_student, steps_are_deterministic, steps_do_not_depend_on_the_split,
        resume_is_exact, adapters_can_be_trained, needs_are_what_is_used, every_pass_is_counted, works_in_bfloat16,
        constraints_hold_after_updates, runs_end_to_end, networks_may_be_held_in_parts,
        moves_to_the_teachers_distribution,
    )
}  # fmt: skip
"""All checks by name, the cheap ones first."""

ONCE = (
    "config_round_trips", "presets_are_valid", "settings_change_the_training", "adapters_can_be_trained",
    "constraints_hold_after_updates", "networks_may_be_held_in_parts", "moves_to_the_teachers_distribution",
)  # fmt: skip
"""Checks that look at all examples together or at none of them, and the one whose pace presets set for the defaults."""


def cases(method: type[Method], settings: Settings | None = None) -> Iterator[tuple[str, Check, Settings]]:
    """What is checked of a method: every check with the defaults and with each example, by name.

    Args:
        settings: check with these settings alone.
    """
    chosen = [settings] if settings is not None else [{}, *method.examples]
    for name, check in CHECKS.items():
        for number, given in enumerate(chosen):
            if number == 0 or name not in ONCE:
                label = ",".join(f"{key}={value}" for key, value in given.items())
                yield f"{name}[{label}]" if label else name, check, given
