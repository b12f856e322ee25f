"""A run's prompts: opened, checked against what the teacher takes, and said in one line."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from distillkit.contracts.conditioner import Conditioner
from distillkit.contracts.source import Source
from distillkit.contracts.teacher import Teacher
from distillkit.contracts.text import PromptList
from distillkit.data.encodings import EncodingPlan, plan_encodings, with_encodings
from distillkit.data.prompts import HUB, FoundPrompts, PromptsConfig, PromptTexts, open_prompts
from distillkit.downloads import DownloadNeeded, only_planned
from distillkit.errors import UsageError
from distillkit.jobs.context import Context
from distillkit.models.diffusers import hub
from distillkit.models.prompts import Prompts
from distillkit.models.store.reference import Folder, Reference, Repository
from distillkit.registry import registry
from distillkit.runs.config import RunConfig
from distillkit.runs.validation import validated

MOST_PROMPTS = 64
"""Prompts of a file that are sampled where no number is given."""
ALL_LOOKED_AT, AT_ONCE = 20_000, 2048
"""So many prompts are all tokenized to count those that are cut; of more the longest, until none of a chunk is."""


def check_before_loading(reference: Reference, config: RunConfig) -> None:
    """Refuse a model of the hub that lacks prompts, or is given some and takes none, before gigabytes of it are loaded.

    Raises:
        UsageError: as `require_prompts`.
    """
    reference = reference.unguided
    if not isinstance(reference, Repository) or reference.available or only_planned(reference.name):
        return
    spec = Folder(reference.name, hub.snapshot(reference.name, weights=False)).spec
    conditioner = registry().build("conditioners", spec.conditioner)
    if config.prompts.path is not None:
        conditioner.with_prompts(PromptList.of([""], "none"))
    elif not config.sources.get("data", {}).get("path"):
        require_prompts(spec.name, conditioner.lacks)


def opened(config: PromptsConfig, say: Callable[[str], None]) -> FoundPrompts | None:
    """The prompts that were asked for; None where none were.

    Raises:
        UsageError, DistillkitError: as `open_prompts`.
    """
    if config.path is None:
        plain = PromptsConfig()
        if given := [name for name in ("column", "split", "unique") if getattr(config, name) != getattr(plain, name)]:
            raise UsageError(f"--prompts-{given[0].replace('_', '-')} is for --prompts FILE, and there is none")
        return None
    if config.path.startswith(HUB) and only_planned(config.path):
        raise DownloadNeeded(f"which prompts {config.path} holds is known only when it has been downloaded")
    return open_prompts(config, say)


def typed_prompts(typed: Sequence[str] | None, file: str | None, count: int | None) -> list[str] | None:
    """The prompts that a person typed, or the first of a file; None where there are neither.

    Args:
        count: how many; `MOST_PROMPTS` of a file by default.

    Raises:
        UsageError: for both at once.
        UsageError, DistillkitError: as `open_prompts`.
    """
    if file is None:
        return list(typed) if typed else None
    if typed:
        raise UsageError("--prompt and --prompts are two ways to say one thing: give one of them")
    given = {"path": file}
    config = validated(PromptsConfig, given, None, {"prompts": given}, ("prompts",))
    return list(open_prompts(config).prompts.texts[: count or MOST_PROMPTS])


def captions_among(sources: Iterable[Source[Any]]) -> FoundPrompts | None:
    """The prompts that come with the data; None where there are none."""
    found = next((prompts for source in sources if (prompts := source.prompts)), None)
    return None if found is None else FoundPrompts(found)


def with_prompts(teacher: Teacher, prompts: PromptList | None, rounding: str) -> Teacher:
    """The teacher of a run, its conditions those of these prompts if there are any; the one that is given stays as it
    is, whatever becomes of the run's conditioner.

    Args:
        rounding: of text encodings.

    Raises:
        UsageError: where it takes none.
    """
    own = copy.copy(teacher)
    conditioner = teacher.conditioner.with_prompts(prompts) if prompts else teacher.conditioner
    if prompts is None and isinstance(own.images, partial) and own.images.args == (teacher,):
        # Its data make their conditions by the run's conditioner, which has encodings at hand.
        own.images = partial(own.images.func, own)
    own.conditioner = conditioner.with_rounding(rounding) if isinstance(conditioner, Prompts) else conditioner
    return own


def encodings_plan(teacher: Teacher, asked: str, draws: int) -> EncodingPlan | None:
    """Where the text encodings of a training are to be; None where it has none.

    Args:
        asked: "auto", "store" or "on-the-fly".
        draws: of prompts, about.

    Raises:
        DistillkitError: for a store that the disk cannot hold.
    """
    if not isinstance(teacher.conditioner, Prompts) or teacher.conditioner.lacks:
        return None
    return plan_encodings(teacher.conditioner, asked, draws)


def encoded(teacher: Teacher, asked: str, draws: int, context: Context, folder: Path) -> Conditioner:
    """The teacher's conditioner, with the encodings of its list at hand; itself where it has none.

    Args:
        asked, draws: as `encodings_plan` takes them.
        folder: of the run.

    Raises:
        DistillkitError, Interrupted: as `with_encodings`.
    """
    conditioner = teacher.conditioner
    if not isinstance(conditioner, Prompts) or conditioner.lacks:
        return conditioner
    # The first process decides for all: disks of several machines are not equally full.
    plans = [encodings_plan(teacher, asked, draws) if context.main else None]
    broadcast_object_list(plans)
    plan = plans[0]
    assert plan is not None
    context.reporter.say(f"text encodings: {plan.summary}")
    return with_encodings(conditioner, plan.where, context.source_job(folder))


def require_prompts(name: str, lacks: str) -> None:
    """Refuse a teacher that has no conditions to draw.

    Args:
        lacks: of its conditioner.

    Raises:
        UsageError: saying what to give.
    """
    if lacks:
        raise UsageError(f"the teacher {name} needs {lacks}")


def cut(conditioner: object, prompts: PromptList) -> str:
    """A warning that counts the prompts whose end the encoder does not read; "" where there are none."""
    if not isinstance(conditioner, Prompts):
        return ""
    texts, encoder = prompts.texts, conditioner.encoder
    everything = len(texts) <= ALL_LOOKED_AT or not isinstance(texts, PromptTexts)
    order = range(len(texts)) if everything else texts.longest_first().tolist()  # type: ignore[attr-defined]
    count, example = 0, ""
    for start in range(0, len(order), AT_ONCE):
        some = [texts[k] for k in order[start : start + AT_ONCE]]
        found = encoder.too_long(some)
        count, example = count + len(found), example or (some[found[0]] if found else "")
        if not found and not everything:
            break
    if not count:
        return ""
    about = "" if everything else "about "
    return (
        f"warning: {about}{count:,} of {len(prompts):,} prompts are longer than the text encoder reads, which leaves "
        f"their ends out (such as {example[:40]!r}...)"
    )
