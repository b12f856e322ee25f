"""Noise-image pairs as work of their own: made by many writers, verified, listed."""

from __future__ import annotations

import math
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from distillkit.contracts.source import Pairs
from distillkit.contracts.teacher import Teacher
from distillkit.data.pair_notes import describe, described, used_by
from distillkit.data.pairs import PairsConfig, PairSource, PairStore
from distillkit.data.prompts import PromptsConfig
from distillkit.data.shards import Shards, identity_of
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import cache_folder, existing_parent, unwritable
from distillkit.jobs.api import AnyMethod, planned
from distillkit.jobs.context import TIMEOUT, Context, job_context
from distillkit.jobs.prompts import cut, encoded, opened, require_prompts, with_prompts
from distillkit.jobs.step_costs import evaluation_seconds
from distillkit.models.diffusers.options import PipelineConfig
from distillkit.models.store.resolve import default_teacher
from distillkit.models.store.resolve import resolve as resolve_teacher
from distillkit.progress import clock
from distillkit.runs.config import validated

TOLERANCE = 1e-2
"""Relative difference of pairs that are made again: another device or batch rounds otherwise, another teacher is far
beyond."""
REMADE = 8
TIMED_AT_ONCE = 16
PART = re.compile(r"([1-9]\d{0,5})/([1-9]\d{0,5})")

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


@dataclass
class PairsChecked:
    """What `verify_pairs` found.

    Args:
        checked: shards whose contents were hashed.
        damaged, missing: numbers of shards that are not what they were written as, or not there.
        remade: pairs that the teacher made again. difference: the largest relative one (RMS) among them.
        different: of these pairs, the numbers of those beyond `TOLERANCE`.
        fixed: shards that were made anew.
    """

    folder: Path
    checked: int = 0
    damaged: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    remade: int = 0
    difference: float = 0.0
    different: list[int] = field(default_factory=list)
    fixed: int = 0

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong, or all that was has been made anew."""
        return self.fixed > 0 or not (self.damaged or self.missing or self.different)


@dataclass(frozen=True)
class StoredSet:
    """A set of pairs in the cache.

    Args:
        teacher: what people call it; "" where that was not noted.
        solver, steps, guidance: of the pairs.
        count: of pairs in shards whose files are there. bytes: of the files.
        used_by: folders of runs that have read them and are still there.
    """

    folder: Path
    teacher: str
    solver: str
    steps: int
    guidance: float
    count: int
    bytes: int
    used_by: Sequence[str]


@contextmanager
def _source(
    teacher: str | Path | Teacher | None, method: AnyMethod | None, device: str, timeout: float,
    settings: dict[str, Any], *, quiet: bool,
) -> Iterator[tuple[PairSource, Context]]:  # fmt: skip
    """The source of pairs that a run of the method would read, or of the settings alone; its teacher loaded."""
    pairs = {
        name: settings[name] for name in ("count", "steps", "solver", "guidance") if settings.get(name) is not None
    }
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
    pipeline = {k: settings[k] for k in ("resolution", "embedded_guidance") if settings.get(k) is not None}
    config = validated(PairsConfig, pairs, None, {"pairs": pairs}, ("pairs",))
    texts = validated(PromptsConfig, prompts, None, {"prompts": prompts}, ("prompts",))
    with job_context(device=device, quiet=quiet, timeout=timeout) as context:
        loaded = teacher
        if not isinstance(loaded, Teacher):
            asked_pipeline = validated(PipelineConfig, pipeline, None, {"pipeline": pipeline}, ("pipeline",))
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
            embedded_guidance; with a method any of its settings.

    Raises:
        UsageError: for a name or setting that does not fit.
        DistillkitError: when the pairs cannot be written, or the teacher fails.
        Interrupted: after a signal; complete shards stay.
    """
    chosen = parse_part(part)
    with _source(teacher, method, device, timeout, settings, quiet=quiet) as (source, context):
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
        made = _make(store, count, chosen, len(mine) * store.shard, context, "making noise-image pairs", kept)
        store.shards.refresh()
        return PairsMade(store.folder, count, made, len(store.missing(count)) * store.shard)


def _make(
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


def compare(store: PairStore, number: int, device: torch.device) -> float:
    """The relative difference (RMS) between a stored pair and the same made anew by the teacher; infinite where its
    condition is another."""
    stored, row = store.shards.mapped(number // store.shard), number % store.shard
    sample, keys = store.solved([number], device)
    if not torch.equal(keys, stored["key"][row : row + 1]):
        return math.inf
    kept = stored["sample"][row : row + 1].double()
    return float((sample.cpu().double() - kept).square().mean().sqrt() / kept.square().mean().sqrt())


def plan_pairs(
    teacher: str | Path | Teacher | None = None, *, method: AnyMethod | None = None, part: str | None = None,
    device: str = "auto", quiet: bool = False, timeout: float = TIMEOUT, **settings: Any,
) -> Rows:  # fmt: skip
    """What `make_pairs` would do with the same arguments; nothing is made.

    Raises:
        UsageError, DistillkitError: as `make_pairs`.
    """
    chosen = parse_part(part)
    with _source(teacher, method, device, timeout, settings, quiet=quiet) as (source, context):
        source.check()
        store, plan = source.store, source.plan()
        missing = len(store.missing(source.config.count, rank=chosen[0] - 1, world=chosen[1]))
        evaluations = missing * store.shard * source.evaluations
        batch = min(store.shard, TIMED_AT_ONCE)
        each = evaluation_seconds(store.teacher, batch, context.device) if missing else 0.0
        free = shutil.disk_usage(existing_parent(store.folder)).free
        whose = f" of part {chosen[0]}/{chosen[1]}" if chosen[1] > 1 else ""
        rows = [
            ("teacher", f"{store.teacher.spec.name}, conditions: {store.teacher.conditioner.summary()}"),
            ("pairs", plan.summary),
            ("to make" + whose, f"{missing * store.shard:,} pairs in {missing:,} shards of {store.shard}; "
             f"{evaluations:,} teacher evaluations"),
            ("disk", f"about {missing * store.shard_bytes / 1e6:,.1f} MB ({free / 1e9:,.1f} GB free)"),
        ]  # fmt: skip
        if missing:
            rows.append(
                ("time", f"about {clock(evaluations * each)} for one writer on {context.device} "
                 f"(measured, {batch} samples a pass); N writers take an N-th")
            )  # fmt: skip
        return [*rows, ("folder", f"{store.folder} (nothing was written)")]


def verify_pairs(
    teacher: str | Path | Teacher | None = None, *, store: str | Path | None = None, method: AnyMethod | None = None,
    remake: int = REMADE, fix: bool = False, device: str = "auto", quiet: bool = False, timeout: float = TIMEOUT,
    **settings: Any,
) -> PairsChecked:  # fmt: skip
    """Hash every shard of a set of pairs, look for missing ones, and have the teacher make some pairs again; what
    `distillkit pairs verify` does.

    Args:
        teacher, method, settings: as `make_pairs` takes them.
        store: a folder of pairs, or its name in the cache, in the place of a teacher; its shards are hashed alone.
        remake: how many pairs, drawn at random, are made again and compared.
        fix: make anew what is damaged, missing or different.

    Raises:
        UsageError: for a store that is none, or `fix` without a teacher.
        DistillkitError, Interrupted: as `make_pairs`.
    """
    if store is not None:
        if teacher is not None or method is not None or fix:
            raise UsageError(
                "a folder of pairs is hashed alone: to make pairs again or anew, name their teacher instead"
            )
        return _hashed_alone(_folder(store), device, quiet=quiet)
    with _source(teacher, method, device, timeout, settings, quiet=quiet) as (source, context):
        found, count = source.store, source.config.count
        shards = max(found.shards_of(count), max(found.shards.written(), default=-1) + 1)
        if settings.get("count") is None and found.shards.written():
            shards = max(found.shards.written()) + 1
        checked = _hashed(found.shards, range(shards), context)
        good = [n for n in range(shards) if n not in {*checked.damaged, *checked.missing}]
        if remake and good:
            found.teacher.conditioner = encoded(found.teacher, "auto", remake, context, found.folder)
            _remade(found, good, remake, checked, context)
        if fix:
            _fix(found, shards, checked, context)
        return checked


def _remade(store: PairStore, good: Sequence[int], remake: int, checked: PairsChecked, context: Context) -> None:
    rows = len(good) * store.shard
    chosen = [divmod(k, store.shard) for k in random.sample(range(rows), min(remake, rows))]
    with context.reporter.task("making pairs again", len(chosen), "pairs") as bar:
        for place, row in chosen:
            number = good[place] * store.shard + row
            difference = compare(store, number, context.device)
            checked.remade += 1
            checked.difference = max(checked.difference, difference)
            if not difference <= TOLERANCE:
                checked.different.append(number)
            bar.advance(1)
            context.stop_if_asked("while making pairs again; nothing was changed")


def _fix(store: PairStore, shards: int, checked: PairsChecked, context: Context) -> None:
    """Make anew what was found wrong."""
    wrong = {*checked.damaged, *checked.missing, *(number // store.shard for number in checked.different)}
    if not wrong:
        return
    for number in wrong:
        store.shards.path(number).unlink(missing_ok=True)
    store.teacher.conditioner = encoded(store.teacher, "auto", len(wrong) * store.shard, context, store.folder)

    _make(
        store, shards * store.shard, (1, 1), len(wrong) * store.shard, context, "making pairs anew",
        f"complete shards stay in {store.folder}",
    )  # fmt: skip
    checked.fixed = len(wrong)


def _hashed_alone(folder: Path, device: str, *, quiet: bool) -> PairsChecked:
    identity = identity_of(folder)
    if identity is None:
        raise UsageError(
            f"{folder} holds no noise-image pairs, or its manifest.json is damaged: name their teacher instead"
        )
    shards = Shards(folder, identity)
    with job_context(device=device, quiet=quiet) as context:
        return _hashed(shards, range(max(shards.written(), default=-1) + 1), context)


def _hashed(shards: Shards, numbers: range, context: Context) -> PairsChecked:
    """Every shard read and hashed, whatever the manifest says."""
    checked = PairsChecked(shards.folder)
    with context.reporter.task("hashing shards", len(numbers), "shards") as bar:
        for number in numbers:
            if not shards.path(number).exists():
                checked.missing.append(number)
            else:
                checked.checked += 1
                if not shards.verify(number):
                    checked.damaged.append(number)
            bar.advance(1)
            context.stop_if_asked("while hashing; nothing was changed")
    return checked


def _folder(store: str | Path) -> Path:
    """The folder of a set of pairs, by its path or its name in the cache.

    Raises:
        UsageError: where there is none.
    """
    for folder in (Path(store).expanduser(), cache_folder() / "pairs" / Path(store).name):
        if folder.is_dir():
            return folder
    raise UsageError(f"there are no pairs at {store}: `distillkit pairs list` shows those in the cache")


def list_pairs(root: str | Path | None = None) -> list[StoredSet]:
    """The sets of pairs in the cache, by their names; what `distillkit pairs list` shows.

    Args:
        root: a folder of such sets; the cache's by default.
    """
    above, found = Path(root) if root else cache_folder() / "pairs", []
    for folder in sorted(above.iterdir()) if above.is_dir() else []:
        identity = identity_of(folder) if folder.is_dir() else None
        if identity is None:
            continue
        files = [path.stat().st_size for path in folder.glob("shard-*.safetensors")]
        try:
            steps, guidance = int(identity.get("steps", 0)), float(identity.get("guidance", 1))
            count = len(files) * int(identity.get("shard", 0))
        except (TypeError, ValueError):
            continue
        runs = [run for run in used_by(folder) if Path(run).is_dir()]
        name = described(folder) or folder.name.rpartition("-")[0]
        found.append(
            StoredSet(folder, name, str(identity.get("solver", ""))[:40], steps, guidance, count, sum(files), runs)
        )
    return found
