"""Noise-image pairs as work of their own, by many writers at once."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillkit.contracts.source import Pairs
from distillkit.contracts.teacher import Teacher
from distillkit.counts import scaled
from distillkit.data.pair_notes import describe
from distillkit.data.pair_store import PairStore
from distillkit.data.pairs import PairsConfig, PairSource
from distillkit.data.prompts import PromptsConfig
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import existing_parent, unwritable
from distillkit.jobs.context import TIMEOUT, Context, job_context
from distillkit.jobs.planned import AnyMethod, planned
from distillkit.jobs.prompts import cut, encoded, opened, require_prompts, with_prompts
from distillkit.jobs.step_costs import evaluation_seconds
from distillkit.models.diffusers.options import PipelineConfig
from distillkit.models.store.resolve import default_teacher
from distillkit.models.store.resolve import resolve as resolve_teacher
from distillkit.progress import Quiet, clock
from distillkit.runs.validation import validated

TIMED_AT_ONCE = 16
PART = re.compile(r"([1-9]\d{0,5})/([1-9]\d{0,5})")

PIPELINE = ("resolution", "embedded_guidance", "guide_with")

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class PairsMade:
    """What `make_pairs` found and made.

    Args:
        folder: of the store. count: of pairs that were asked for, of all parts.
        made: pairs that this writer has made.
        missing: that other parts are still to make.
    """

    folder: Path
    count: int
    made: int
    missing: int


@contextmanager
def pair_source(
    teacher: str | Path | Teacher | None, method: AnyMethod | None, device: str, timeout: float,
    settings: dict[str, Any], *, quiet: bool,
) -> Iterator[tuple[PairSource, Context]]:  # fmt: skip
    """The source of pairs that a run of the method would read, or of the settings alone; its teacher loaded."""
    pairs = {
        name: settings[name] for name in ("count", "steps", "solver", "guidance") if settings.get(name) is not None
    }
    # Before a plan is made, in which they have longer names.
    config = validated(PairsConfig, pairs, None, pairs)
    if method is not None:
        asked = {f"pairs_{name}": value for name, value in pairs.items()}
        others = {k: v for k, v in settings.items() if k not in pairs and v is not None}
        with planned(method, teacher, device=device, quiet=quiet, timeout=timeout, **asked, **others) as plan:
            job = plan.job()
            found = job.sources.get(Pairs)
            if not isinstance(found, PairSource):
                raise UsageError(f"--method {plan.config.method}: with these settings it reads no noise-image pairs")
            yield found, plan.context
        return
    prompts = {k.removeprefix("prompts_"): v for k, v in settings.items() if k.startswith("prompts") and v is not None}
    if "prompts" in prompts:
        prompts["path"] = prompts.pop("prompts")
    texts = validated(PromptsConfig, prompts, None, {"prompts": prompts}, ("prompts",))
    with job_context(device=device, quiet=quiet, timeout=timeout) as context:
        loaded = teacher
        if not isinstance(loaded, Teacher):
            asked_pipeline = _pipeline(settings)
            asked_pipeline.require_guidance(1.0 if config.guidance is None else config.guidance)
            loaded = resolve_teacher(str(teacher or default_teacher()), asked_pipeline).load(
                context.reporter, context.stopped
            )
        found_prompts = opened(texts, context.reporter.say)
        own = with_prompts(loaded, found_prompts.prompts if found_prompts else None, texts.dtype).to(context.device)
        require_prompts(own.spec.name, own.conditioner.lacks)
        if found_prompts:
            context.reporter.say(f"prompts: {found_prompts.summary}")
            if warning := cut(own.conditioner, found_prompts.prompts):
                context.reporter.say(warning)
        yield PairSource(own, config), context


def _pipeline(settings: Mapping[str, Any]) -> PipelineConfig:
    asked = {k: settings[k] for k in PIPELINE if settings.get(k) is not None}
    return validated(PipelineConfig, asked, None, {"pipeline": asked}, ("pipeline",))


def parse_part(text: str | None) -> tuple[int, int]:
    """(3, 8) of "3/8", (1, 1) of nothing.

    Raises:
        UsageError: for what is none.
    """
    if text is None:
        return 1, 1
    found = PART.fullmatch(text)
    if not found or int(found[1]) > int(found[2]):
        raise UsageError(f"--part {text}: write it as K/N, the K-th of N parts, such as 3/8")
    return int(found[1]), int(found[2])


def make_pairs(
    teacher: str | Path | Teacher | None = None, *, method: AnyMethod | None = None, part: str | None = None,
    device: str = "auto", quiet: bool = False, timeout: float = TIMEOUT, **settings: Any,
) -> PairsMade:  # fmt: skip
    """Make the noise-image pairs that runs of a teacher find; what `distillkit pairs make` does.

    Any number of calls, in processes of any machines that share the cache folder, work on one set: each claims one
    shard after the other, and returns when all shards are there.

    Args:
        teacher: name, folder, file or hub repository, or a teacher at hand; the embedded one by default.
        method: make what a run of it reads, by its preset for the teacher; without, the teacher's own solver.
        part: "K/N": the K-th of N parts alone, without waiting for the others.
        device, quiet, timeout: as `distil` takes them.
        settings: count, steps, solver, guidance (of the pairs), prompts, prompts_column, prompts_dtype, resolution,
            embedded_guidance, guide_with; with a method any of its settings.

    Raises:
        UsageError: for a name or setting that does not fit.
        DistillkitError: when the pairs cannot be written, or the teacher fails.
        Interrupted: after a signal; complete shards stay.
    """
    chosen = parse_part(part)
    with pair_source(teacher, method, device, timeout, settings, quiet=quiet) as (source, context):
        source.check()
        store, count = source.store, source.config.count
        if reason := unwritable(store.folder):
            raise DistillkitError(
                f"{store.folder} cannot be written ({reason}); DISTILLKIT_CACHE names another cache, which all writers "
                "and runs must share"
            )
        say = context.reporter.say
        say(f"pairs: {source.plan().summary}")
        mine = store.missing(count, rank=chosen[0] - 1, world=chosen[1])
        if mine:
            store.teacher.conditioner = encoded(store.teacher, "auto", count, context, store.folder)
        describe(store.folder, store.teacher)

        kept = f"complete shards stay in {store.folder}, and the same command goes on"
        made = make_missing(store, count, chosen, len(mine) * store.shard, context, "making noise-image pairs", kept)
        store.shards.refresh()
        return PairsMade(store.folder, count, made, len(store.missing(count)) * store.shard)


def make_missing(
    store: PairStore, count: int, part: tuple[int, int], total: int, context: Context, doing: str, kept: str
) -> int:
    """Make the missing shards of a part of a store; the pairs that were made here.

    Args:
        total: pairs that are missing.
        kept: said after an interruption.
    """
    made = 0
    with context.reporter.task(doing, total, "pairs") as bar:

        def advance(pairs: int) -> None:
            nonlocal made
            made += pairs
            bar.advance(pairs)
            stop_if_asked()

        def found(number: int) -> None:
            bar.advance(store.shard)
            stop_if_asked()

        def stop_if_asked() -> None:
            # Asked always: it shows that this process goes on.
            if context.stopped():
                raise context.interrupted(f"stopped; {kept}")

        store.make(count, context.device, rank=part[0] - 1, world=part[1], advance=advance, found=found)
    return made


def plan_pairs(
    teacher: str | Path | Teacher | None = None, *, method: AnyMethod | None = None, part: str | None = None,
    device: str = "auto", quiet: bool = False, timeout: float = TIMEOUT, **settings: Any,
) -> Rows:  # fmt: skip
    """What `make_pairs` would do with the same arguments; nothing is made. A teacher that would have to be downloaded
    is replaced by one with random weights.

    Raises:
        UsageError, DistillkitError: as `make_pairs`.
    """
    chosen, absent = parse_part(part), ""
    if not isinstance(teacher, Teacher):
        reference = resolve_teacher(str(teacher or default_teacher()), _pipeline(settings))
        if not reference.available:
            reference.check()
            teacher = reference.skeleton(Quiet())
            size = "" if reference.download_bytes is None else f", {scaled(reference.download_bytes, 'B')}"
            absent = f"to be downloaded: {' and '.join(reference.absent)}{size}"
            settings = {name: value for name, value in settings.items() if name not in PIPELINE}
    with pair_source(teacher, method, device, timeout, settings, quiet=quiet) as (source, context):
        source.check()
        store, plan = source.store, source.plan()
        missing = len(store.missing(source.config.count, rank=chosen[0] - 1, world=chosen[1]))
        evaluations = round(missing * store.shard * source.evaluations)
        batch = min(store.shard, TIMED_AT_ONCE)
        each = evaluation_seconds(store.teacher, batch, context.device) if missing else 0.0
        free = shutil.disk_usage(existing_parent(store.folder)).free
        whose = f" of part {chosen[0]}/{chosen[1]}" if chosen[1] > 1 else ""
        rows = [
            ("teacher", f"{store.teacher.spec.name}, conditions: {store.teacher.conditioner.summary()}"),
            *([("", absent)] if absent else []),
            ("pairs", f"{store.solver}, {store.steps} steps" if absent else plan.summary),
            ("to make" + whose, f"{missing * store.shard:,} pairs in {missing:,} shards of {store.shard}; "
             f"{evaluations:,} teacher evaluations"),
            ("disk", f"about {missing * store.shard_bytes / 1e6:,.1f} MB ({free / 1e9:,.1f} GB free)"),
        ]  # fmt: skip
        if missing:
            rows.append(
                ("time", f"about {clock(evaluations * each)} for one writer on {context.device} "
                 f"(measured, {batch} samples a pass); N writers take an N-th")
            )  # fmt: skip
        where = f"{store.folder.parent}, by the hash of the teacher" if absent else store.folder
        return [*rows, ("folder", f"{where} (nothing was written)")]
