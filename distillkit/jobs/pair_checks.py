"""Whether noise-image pairs are whole, and what their teacher makes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from distillkit.contracts.teacher import Teacher
from distillkit.data.pair_store import PairStore
from distillkit.data.shards import Shards, identity_of
from distillkit.errors import UsageError
from distillkit.files import cache_folder
from distillkit.jobs.context import TIMEOUT, Context, job_context
from distillkit.jobs.pairs import make_missing, pair_source
from distillkit.jobs.planned import AnyMethod
from distillkit.jobs.prompts import encoded

TOLERANCE = 1e-2
"""Relative difference of pairs that are made again: another device or batch rounds otherwise, another teacher is far
beyond."""
REMADE = 8


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
        """Whether nothing is wrong, or all that was has been made anew; where pairs that were drawn at random are not
        the teacher's, nothing is known of the others."""
        return not self.different and (self.fixed > 0 or not (self.damaged or self.missing))


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
    with pair_source(teacher, method, device, timeout, settings, quiet=quiet) as (source, context):
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

    make_missing(
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


def compare(store: PairStore, number: int, device: torch.device) -> float:
    """The relative difference (RMS) between a stored pair and the same made anew by the teacher; infinite where its
    condition is another."""
    stored, row = store.shards.mapped(number // store.shard), number % store.shard
    sample, keys = store.solved([number], device)
    if not torch.equal(keys, stored["key"][row : row + 1]):
        return math.inf
    kept = stored["sample"][row : row + 1].double()
    return float((sample.cpu().double() - kept).square().mean().sqrt() / kept.square().mean().sqrt())
