"""Encodings of a list of prompts: made once into a store that runs share, kept in memory where they are few, or made by
the frozen encoder whenever they are needed. All three give the same numbers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.source import SourceJob
from distillkit.data.files import size_text
from distillkit.data.shards import Shards, identity_hash
from distillkit.errors import DistillkitError
from distillkit.files import cache_folder, existing_parent, remove_leftovers
from distillkit.models.prompts import Prompts
from distillkit.progress import Quiet

Where = Literal["memory", "store", "on-the-fly"]

IN_MEMORY = 2**26
"""Bytes of encodings that are kept in memory instead of a store."""
SHARD_BYTES = 2**25
"""Of a shard, about: what an interruption can cost."""
ENCODED_AT_ONCE = 16
SHARE = 0.5
"""Of what is free on the disk, at most, where nobody has asked for a store."""
NULL, BYTES = "null/", "bytes"


IDENTITY = frozenset({"prompts", "count", "encoder", "rounding"})
"""What a store is named by the values of."""


@dataclass(frozen=True)
class EncodingPlan:
    """Where the encodings of a list are to be, and what that takes.

    Args:
        summary: one line for people.
        disk_bytes: that are still to be written. memory_bytes: of a process.
    """

    where: Where
    summary: str
    disk_bytes: int = 0
    memory_bytes: int = 0


class EncodingStore:
    """Encodings of the prompts of a list, in shards; its folder is named by all that they depend on.

    Shard 0 holds the null condition and the size of an encoding, the others `rows` prompts each, in their order.

    Args:
        conditioner: its list, its encoder, and what it rounds to.
        root: where stores are kept; the cache folder by default.
    """

    def __init__(self, conditioner: Prompts, root: Path | None = None) -> None:
        self.conditioner = conditioner.with_encodings(None)
        encoder = conditioner.hashed().model_dump(mode="json")["encoder"]
        identity = {
            "prompts": conditioner.listed, "count": conditioner.count, "encoder": encoder,
            "rounding": conditioner.rounded_to,
        }  # fmt: skip
        name = str(encoder.get("kind", "text")).rpartition(":")[2]
        self.shards = Shards((root or cache_folder() / "encodings") / f"{name}-{identity_hash(identity)}", identity)

    @property
    def folder(self) -> Path:
        return self.shards.folder

    @property
    def row_bytes(self) -> int:
        """Of one prompt; 0 where nothing has been made."""
        return int(self.shards.mapped(0)[BYTES]) if self.shards.is_whole(0) else 0

    @property
    def rows(self) -> int:
        """Prompts of a shard."""
        return max(1, SHARD_BYTES // max(1, self.row_bytes))

    def missing(self) -> int:
        """Prompts that are still to be encoded."""
        count = self.conditioner.count
        if not self.shards.is_whole(0):
            return count
        rows, whole = self.rows, self.shards.is_whole
        return sum(min(rows, count - start) for start in range(0, count, rows) if not whole(1 + start // rows))

    def begin(self) -> None:
        """Make shard 0, which says how large the others are."""
        remove_leftovers(self.folder)
        if not self.shards.is_whole(0):
            null, first = self._null(), self._encoded(range(1))
            size = sum(value.nbytes for value in first.values())
            self.shards.write(0, {**{NULL + k: v for k, v in null.items()}, BYTES: torch.tensor(max(1, size))})

    def make(self, rank: int, world: int, advance: Callable[[int], None]) -> None:
        """Make the missing shards whose number is this process'; complete ones stay whatever happens.

        Raises:
            DistillkitError: when they cannot be written, or an encoding is not finite.
        """
        count, rows = self.conditioner.count, self.rows
        self.shards.fill(
            range(1 + rank, 1 + -(-count // rows), world),
            lambda number: self._encoded(range((number - 1) * rows, min(number * rows, count))), advance,
        )  # fmt: skip

    def open(self) -> Prompts:
        """The conditioner, taking its conditions from here; all must have been made.

        Raises:
            DistillkitError: when some are missing.
        """
        self.shards.refresh()
        if missing := self.missing():
            raise DistillkitError(
                f"about {missing:,} of {self.conditioner.count:,} text encodings are missing in {self.folder}; all "
                "processes must share this folder: set DISTILLKIT_CACHE to one that they all see"
            )
        self.shards.opened()
        null = {
            name.removeprefix(NULL): value.clone() for name, value in self.shards.mapped(0).items() if name != BYTES
        }
        return self.conditioner.with_encodings(_Stored(self), Condition(**null) if null else None)

    def _null(self) -> dict[str, Tensor]:
        null = _null_of(self.conditioner)
        return {} if null is None else {name: value.cpu().contiguous() for name, value in null.items()}

    @torch.no_grad()
    def _encoded(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        parts = [numbers[k : k + ENCODED_AT_ONCE] for k in range(0, len(numbers), ENCODED_AT_ONCE)]
        made = [self.conditioner.stored(torch.tensor(list(part))) for part in parts]
        return {name: value.cpu().contiguous() for name, value in Condition.cat(made).items()}


class _Stored:
    """Conditions out of a store's shards, which are mapped when they are first read from."""

    def __init__(self, store: EncodingStore) -> None:
        self.shards, self.rows = store.shards, store.rows
        self._mapped: dict[int, dict[str, Tensor]] = {}

    def __call__(self, keys: Tensor) -> Condition:
        read = [self._row(*divmod(key, self.rows)) for key in keys.tolist()]
        return Condition(**{name: torch.stack([row[name] for row in read]) for name in read[0]})

    def _row(self, shard: int, row: int) -> dict[str, Tensor]:
        if (found := self._mapped.get(shard + 1)) is None:
            found = self._mapped[shard + 1] = self.shards.mapped(shard + 1)
        return {name: value[row] for name, value in found.items()}


def plan_encodings(conditioner: Prompts, asked: str = "auto", draws: int | None = None) -> EncodingPlan:
    """Where the encodings of the list are to be.

    Args:
        asked: "store", "on-the-fly", or "auto", which decides by their size, what is free on the disk, and how many
            prompts are drawn.
        draws: of prompts that are to come.

    Raises:
        DistillkitError: for a store that the disk cannot hold.
    """
    count, store = conditioner.count, EncodingStore(conditioner)
    begun = store.row_bytes
    row = begun or sum(value.nbytes for value in store.conditioner.stored(torch.zeros(1).long()).values())
    missing = store.missing() if begun else count
    size, needed = row * count, row * missing
    about = f"{count:,} prompts, {size_text(size)} in {conditioner.rounded_to or 'fp32'}"
    free, reason = shutil.disk_usage(existing_parent(store.folder)).free, ""
    if asked == "auto" and size <= IN_MEMORY:
        return EncodingPlan("memory", f"{about}, encoded when the run starts and kept in memory", memory_bytes=size)
    if asked == "auto" and missing:
        reason = _unwritable(store.folder)
        if not reason and draws is not None and draws < missing:
            reason = f"this run draws about {draws:,} prompts"
        if not reason and needed > SHARE * free:
            where = store.folder.parent
            reason = f"a store would take {size_text(needed)} of the {size_text(free)} that are free in {where}"
    if asked == "on-the-fly" or reason:
        why = f" ({reason})" if reason else ""
        return EncodingPlan("on-the-fly", f"{count:,} prompts, encoded by the frozen encoder when they are drawn{why}")
    if needed > free:
        raise DistillkitError(
            f"text encodings need {size_text(needed)} in {store.folder} and {size_text(free)} are free; set "
            "DISTILLKIT_CACHE to a larger disk, or leave them out by --prompts-encodings on-the-fly"
        )
    to_make = f", {missing:,} to make" if missing else ""
    return EncodingPlan("store", f"{about}, memory-mapped from {store.folder}{to_make}", disk_bytes=needed)


def _unwritable(folder: Path) -> str:
    """Why a store cannot be made; "" where it can, as far as that shows without trying."""
    above = existing_parent(folder)
    return "" if above.is_dir() and os.access(above, os.W_OK) else f"{folder} cannot be written"


def with_encodings(conditioner: Prompts, where: Where, job: SourceJob) -> Prompts:
    """The conditioner, taking its list's conditions from `where`; what is missing is made first, shared among the
    processes by number. The encoder's memory is free afterwards where nothing is made on the fly.

    Raises:
        DistillkitError: as `EncodingStore.make`.
        Interrupted: after a signal; complete shards stay.
    """
    plain = conditioner.with_encodings(None)
    if where == "on-the-fly":
        return plain
    made = _in_memory(plain, job) if where == "memory" else _stored(plain, job)
    made.release()
    return made


def _in_memory(conditioner: Prompts, job: SourceJob) -> Prompts:
    """Every process has them all: they are few."""
    kept, count = [], conditioner.count
    with (job.task or Quiet().task)("encoding prompts", count, "prompts") as bar:
        for start in range(0, count, ENCODED_AT_ONCE):
            keys = torch.arange(start, min(start + ENCODED_AT_ONCE, count))
            kept.append(conditioner.stored(keys))
            bar.advance(len(keys))
            if job.should_stop():
                raise job.interrupted("stopped while encoding prompts")
    whole = Condition.cat(kept)
    device = next(iter(whole.values())).device
    return conditioner.with_encodings(lambda keys: whole.select(keys.to(device)), _null_of(conditioner))


@torch.no_grad()
def _null_of(conditioner: Prompts) -> Condition | None:
    """The null condition, one row; None where the model has none."""
    return conditioner.encoder.null() if conditioner.has_null else None


def _stored(conditioner: Prompts, job: SourceJob) -> Prompts:
    store = EncodingStore(conditioner)
    if missing := store.missing():
        if job.rank == 0:
            store.begin()
        job.barrier()
        store.shards.refresh()
    store.shards.share(
        job, "encoding prompts", "prompts", missing, lambda advance: store.make(job.rank, job.world, advance)
    )
    return store.open()
