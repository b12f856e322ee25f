"""What a method declares: its settings, its presets, its needs and its cost."""

from __future__ import annotations

import json

from pydantic import ValidationError

from distillkit.contracts.method import Method
from distillkit.engine.losses import loss_of
from distillkit.errors import DistillkitError
from distillkit.runs.config import resolve
from distillkit.testing.failure import CheckFailure
from distillkit.testing.setup import all_evaluations, step_of, trainer_of
from distillkit.testing.teachers import conditional


def config_round_trips(method: type[Method]) -> None:
    """The configuration survives JSON, refuses unknown keys, and explains itself."""
    try:
        default = method.Config()
    except ValidationError as error:
        raise CheckFailure(
            f"{method.name}'s Config has no defaults: {error.errors()[0]['loc']}",
            "`distillkit run` must work without options",
            "give every field a default that works",
        ) from error
    again = method.Config.model_validate(json.loads(default.model_dump_json()))
    if again != default:
        raise CheckFailure(
            "the configuration changes on its way through JSON",
            "runs save their configuration and are resumed and reproduced from it",
            "use types that pydantic writes and reads back: numbers, strings, lists, nested models",
        )
    try:
        method.Config.model_validate({"no_such_setting": 1})
    except ValidationError:
        pass
    else:
        raise CheckFailure(
            "the configuration accepts a key that it does not have",
            "a misspelt setting would be left out without a word",
            'inherit from distillkit.MethodConfig and keep its extra="forbid"',
        )
    if silent := [name for name, field in method.Config.model_fields.items() if not field.description]:
        raise CheckFailure(
            f"these settings have no description: {', '.join(silent)}",
            "descriptions are the help of the command line's options",
            'write Field(default, description="...") for each',
        )


def presets_are_valid(method: type[Method]) -> None:
    """Every preset's values are accepted, and say where they come from."""
    for preset in method.presets:
        for pattern in preset.teachers:
            try:
                resolve(method, options={"teacher": pattern.replace("*", "")})
            except DistillkitError as error:
                raise CheckFailure(
                    f"the preset {preset.name!r} is refused: {error}",
                    "everyone who names such a teacher gets this error",
                    "correct the preset's settings, training or pairs",
                ) from error
        if not preset.source:
            raise CheckFailure(
                f"the preset {preset.name!r} does not say where its numbers come from",
                "a reader cannot tell a paper's settings from a guess",
                'set source="paper, table" or "chosen for ..."',
            )


def needs_are_what_is_used(method: type[Method]) -> None:
    """Each objective and learner reads of the step what it declares, and nothing else."""
    trainer = trainer_of(method, conditional())
    for part in trainer.recipe.parts:
        step = step_of(trainer, part.needs)
        loss_of(part, step)
        used = {name for name in ("samples", "pairs", "pair_samples", "images") if name in vars(step)}
        # The pairs' noise is read on the way to the student's samples from it.
        declared = set(part.needs)
        if extra := used - declared - ({"pairs"} if "pair_samples" in declared else set()):
            raise CheckFailure(
                f"{part.name} reads step.{', step.'.join(sorted(extra))} without declaring it",
                "the engine opens sources and shares student passes by what is declared",
                f"needs = {tuple(sorted(declared | used))!r}",
            )
        if unread := declared - used:
            raise CheckFailure(
                f"{part.name} declares {', '.join(sorted(unread))} and never reads it",
                "the engine would make pairs, open images or run the student for nothing",
                f"needs = {tuple(sorted(declared & used))!r}",
            )


def every_pass_is_counted(method: type[Method]) -> None:
    """The engine knows every network that is evaluated, so the cost of the method is its true cost."""
    trainer = trainer_of(method, conditional())
    trainer._enter_stage(0)
    known = {"samples": 0}
    with all_evaluations() as seen:
        handles = [
            module.register_forward_pre_hook(
                lambda _, args: known.__setitem__("samples", known["samples"] + len(args[0]))
            )
            for module in trainer.roles().values()
        ]
        for _ in range(trainer.recipe.student_every):
            trainer.train_step()
        for handle in handles:
            handle.remove()
    if seen["samples"] > known["samples"]:
        raise CheckFailure(
            f"{seen['samples'] - known['samples']} of {seen['samples']} network evaluations are by networks that the "
            "engine does not know",
            "benchmarks give every method the same budget of network evaluations",
            "name every network that an objective owns in Objective.modules(); keep a learner's as its `denoiser`",
        )
