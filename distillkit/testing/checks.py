"""All checks by name. Each takes a method class and raises `CheckFailure`: what is wrong, why, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from distillkit.contracts.method import Method
from distillkit.testing.declarations import (
    config_round_trips,
    every_pass_is_counted,
    needs_are_what_is_used,
    presets_are_valid,
)
from distillkit.testing.exactness import resume_is_exact, steps_are_deterministic, steps_do_not_depend_on_the_split
from distillkit.testing.gradients import (
    gradients_reach_the_student_alone,
    learners_leave_the_student_alone,
    recipe_builds_for_every_teacher,
    works_in_bfloat16,
)
from distillkit.testing.outcome import moves_to_the_teachers_distribution, students_load_and_sample

CHECKS: Mapping[str, Callable[[type[Method]], None]] = {
    check.__name__: check
    for check in (
        config_round_trips, presets_are_valid, recipe_builds_for_every_teacher, gradients_reach_the_student_alone,
        learners_leave_the_student_alone, steps_are_deterministic, steps_do_not_depend_on_the_split, resume_is_exact,
        needs_are_what_is_used, every_pass_is_counted, works_in_bfloat16, students_load_and_sample,
        moves_to_the_teachers_distribution,
    )
}  # fmt: skip
"""All checks by name, the cheap ones first."""
