"""What a method declares: its settings, its presets and examples, its needs and its cost."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

from pydantic import ValidationError

from distillkit.contracts.method import Method
from distillkit.contracts.source import Pairs, PairSamples, Samples
from distillkit.contracts.step import Step
from distillkit.engine.losses import loss_of
from distillkit.errors import DistillkitError
from distillkit.runs.config import resolve
from distillkit.testing.calls import recorded
from distillkit.testing.failure import CheckFailure
from distillkit.testing.setup import Settings, parts_of, synthetic_sources
from distillkit.testing.teachers import smallest
from distillkit.testing.training import trainer_of


def config_round_trips(method: type[Method], settings: Settings) -> None:
    """The configuration survives JSON, refuses unknown keys, and explains itself."""
    try:
        default = method.Config.model_validate(dict(settings))
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
            "a misspelt setting would be ignored in silence",
            'inherit from distillkit.MethodConfig and keep its extra="forbid"',
        )
    if silent := [name for name, field in method.Config.model_fields.items() if not field.description]:
        raise CheckFailure(
            f"these settings have no description: {', '.join(silent)}",
            "descriptions are the help of the command line's options",
            'write Field(default, description="...") for each',
        )


def presets_are_valid(method: type[Method], settings: Settings) -> None:
    """Every preset's and example's values are accepted, and presets say where they come from."""
    for preset in method.presets:
        for pattern in preset.teachers:
            try:
                resolve(method, teacher_name=pattern.replace("*", ""), options={"settings": dict(settings)})
            except DistillkitError as error:
                raise CheckFailure(
                    f"the preset {preset.name!r} is refused: {error}",
                    "everyone who names such a teacher gets this error",
                    "correct the preset's settings, training, pairs or student",
                ) from error
        if not preset.source:
            raise CheckFailure(
                f"the preset {preset.name!r} does not say where its numbers come from",
                "a reader cannot tell a paper's settings from a guess",
                'set source="paper, table", the file of the authors\' code, or "untuned"',
            )
    for example in method.examples:
        try:
            resolve(method, options={"settings": dict(example)})
        except DistillkitError as error:
            raise CheckFailure(
                f"the example {dict(example)} is refused: {error}",
                "examples are the documented uses of a method",
                f"correct {method.__name__}.examples",
            ) from error


def needs_are_what_is_used(method: type[Method], settings: Settings) -> None:
    """Each objective and learner reads of the step what it declares, and nothing else."""
    parts = parts_of(method, smallest(), settings)
    everything = replace(parts, sources=synthetic_sources(parts.teacher, None))
    for part in parts.recipe.parts:
        step = everything.step(needs=part.needs)
        loss_of(part, step)
        used, declared = _read(step), set(part.needs)
        # The pairs' noise is read on the way to the student's samples from it.
        if extra := used - declared - ({Pairs} if PairSamples in declared else set()):
            raise CheckFailure(
                f"{part.name} reads {_names(extra)} of the step without declaring it",
                "the engine opens sources and shares student passes by what is declared",
                f"needs = ({_names(declared | used)},)",
            )
        if unread := declared - used:
            raise CheckFailure(
                f"{part.name} declares {_names(unread)} and never reads it",
                "the engine would make pairs, open images or run the student for nothing",
                f"needs = ({_names(declared & used)},)",
            )


def _read(step: Step) -> set[type]:
    """What has been read of a step."""
    read = {kind for kind, name in ((Samples, "samples"), (PairSamples, "pair_samples")) if name in vars(step)}
    return {*read, *step._batches}


def _names(kinds: Iterable[type]) -> str:
    return ", ".join(sorted(kind.__name__ for kind in kinds))


def every_pass_is_counted(method: type[Method], settings: Settings) -> None:
    """The engine knows every network that is evaluated, so the cost of the method is its true cost."""
    trainer = trainer_of(method, smallest(), settings)
    with recorded() as calls:
        for _ in range(trainer.recipe.student_every):
            trainer.train_step()
    known = {id(network) for network in trainer.roles().values()}
    # A denoiser inside of another is counted with it, wherever the engine knows one of the two.
    unknown = [
        call for call in calls if not known & {id(call.network), *map(id, call.outer), *map(id, call.network.modules())}
    ]
    if missed := sum(len(call.x) for call in unknown):
        raise CheckFailure(
            f"{missed} of {sum(len(call.x) for call in calls)} network evaluations are by networks that the engine "
            f"does not know, such as a {type(unknown[0].network).__name__}",
            "benchmarks give every method the same budget of network evaluations",
            "name every network that an objective owns in Objective.modules(); keep a learner's as its `denoiser`",
        )
