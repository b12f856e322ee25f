"""Noise-image pairs of a teacher's ODE: a content-addressed, memory-mapped, restartable store that runs share."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from distillkit.contracts.random import Indices, SampleRNG
from distillkit.contracts.source import Batches, Pairs, Source, SourceConfig, SourceJob, SourcePlan
from distillkit.contracts.teacher import Teacher, guidance_title
from distillkit.counts import Count
from distillkit.data.identity import teacher_identity
from distillkit.data.pair_notes import note_use
from distillkit.data.shards import Shards, identity_hash
from distillkit.data.synthetic import SyntheticPairs
from distillkit.diffusion.solvers import SolverName, solver_evaluations
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import cache_folder, existing_parent, remove_leftovers, unwritable
from distillkit.models.guide_cost import guide_cost

SHARD_PAIRS = 256
"""Most pairs in one shard, which is what an interruption can cost and what is solved in one pass."""

SHARD_BYTES = 2**23
"""Most bytes of samples in one shard, where a pair is large; a shard has one pair at least."""

MAPPING_BYTES = 4096
"""Memory that one mapped shard takes beside its pages, which belong to the system's cache."""


IDENTITY = frozenset({"teacher", "solver", "steps", "guidance", "seed", "dtype", "shard"})
"""What a store is named by the values of."""


class PairStore:
    """Pairs (z, y) with y = the teacher's ODE solved from z under the condition of a key.

    Only y and the key are stored, in shards: z is a function of (seed, i), and conditions are encoded when a batch is
    read. Pair i depends on (seed, i) alone, so that larger sets extend smaller ones. The folder's name is the hash of
    everything that determines the pairs, so a store never mixes two teachers, solvers or guidance weights.

    Args:
        teacher: whose ODE is solved; moved to the device already.
        steps: of the solver; the teacher's own number by default.
        solver: the teacher's own by default.
        guidance: guidance weight of the teacher's samples.
        seed: seed of noise and keys.
        root: where stores are kept; the cache folder by default.
    """

    def __init__(
        self,
        teacher: Teacher,
        *,
        steps: int | None = None,
        solver: SolverName | None = None,
        guidance: float = 1.0,
        seed: int = 0,
        root: Path | None = None,
    ) -> None:
        self.teacher, self.guidance = teacher, guidance
        self.steps, self.solver = steps or teacher.spec.solver_steps, solver or teacher.spec.solver
        self.rng, self.shape = SampleRNG(seed), teacher.spec.shape
        self.shard = min(SHARD_PAIRS, max(1, SHARD_BYTES // (4 * math.prod(self.shape))))
        identity = {
            "teacher": teacher_identity(teacher, guided=guidance != 1),
            "solver": self.solver,
            "steps": self.steps,
            "guidance": repr(float(guidance)),
            "seed": seed,
            "dtype": "float32",
            "shard": self.shard,
        }
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(teacher.spec.name).stem).strip("-.")[:40] or "teacher"
        self.shards = Shards((root or cache_folder() / "pairs") / f"{name}-{identity_hash(identity)}", identity)

    @property
    def folder(self) -> Path:
        return self.shards.folder

    @property
    def shard_bytes(self) -> int:
        """Of one shard on the disk, about."""
        return self.shard * (4 * math.prod(self.shape) + 8) + 512

    def missing(self, count: int, *, rank: int = 0, world: int = 1) -> list[int]:
        """Numbers of the shards among the first `count` pairs that are absent or damaged; of this process' share."""
        return [number for number in range(rank, self.shards_of(count), world) if not self.shards.is_whole(number)]

    def make(
        self, count: int, device: torch.device, *, rank: int = 0, world: int = 1, advance: Callable[[int], None],
        found: Callable[[int], None] = lambda number: None,
    ) -> None:  # fmt: skip
        """Make the missing shards whose number is this process', number % world = rank; `advance(pairs)` after each.

        Every process decides by numbers alone, so none depends on when another looked. Jobs that need the same ones
        share the work, as `Shards.fill` does. It may be interrupted at any time: complete shards stay, and the next
        call makes the others.

        Args:
            found: hears the numbers of shards that other jobs have made meanwhile.

        Raises:
            DistillkitError: when they cannot be written, or the teacher's samples are not finite.
        """
        remove_leftovers(self.folder)
        self.shards.fill(
            range(rank, self.shards_of(count), world), lambda number: self.solve(number, device), advance, found
        )

    def open(self, count: int, device: torch.device) -> StoredPairs:
        """The first `count` pairs, verified; all must have been made.

        Raises:
            DistillkitError: when some are missing.
        """
        self.shards.refresh()
        if missing := self.missing(count):
            raise DistillkitError(
                f"{len(missing):,} of {self.shards_of(count):,} shards of noise-image pairs are missing in "
                f"{self.folder} (the first is {self.shards.path(missing[0]).name}); all processes must share this "
                "folder: set DISTILLKIT_CACHE to one that they all see"
            )
        self.shards.opened()
        return StoredPairs(self, count, device)

    def shards_of(self, count: int) -> int:
        """How many shards so many pairs take."""
        return -(-count // self.shard)

    def solve(self, number: int, device: torch.device) -> dict[str, Tensor]:
        """The contents of a shard, by the teacher.

        Raises:
            DistillkitError: when they are not finite.
        """
        sample, keys = self.solved(range(number * self.shard, (number + 1) * self.shard), device)
        if not sample.isfinite().all():
            raise DistillkitError(
                f"samples of the teacher {self.teacher.spec.name} are not finite with {self.solver}, {self.steps} "
                f"steps and {guidance_title(self.guidance, self.teacher)}; no pairs can be made of them"
            )
        return {"sample": sample.cpu().contiguous(), "key": keys}

    @torch.no_grad()
    def solved(self, indices: Indices, device: torch.device) -> tuple[Tensor, Tensor]:
        """Samples (B, ...) on the device and keys (B,) of the pairs with these numbers, by the teacher."""
        keys = self.teacher.conditioner.draw(self.rng.uniform("pairs/condition", 0, indices))
        condition = self.teacher.conditioner.encode(keys.to(device)).to(device)
        sample = self.teacher.sample(
            self.noise(indices).to(device), condition, steps=self.steps, solver=self.solver, guidance=self.guidance
        )
        return sample, keys

    def noise(self, indices: Indices) -> Tensor:
        """The noise z of pairs, (B, ...) float32 on the CPU."""
        return self.rng.normal("pairs/noise", 0, indices, self.shape)


class StoredPairs:
    """Opened pairs, drawn with replacement by (seed, step, sample index); only the rows of a batch are read."""

    def __init__(self, store: PairStore, count: int, device: torch.device) -> None:
        self.store, self.count, self.device = store, count, device
        self._shards = [store.shards.mapped(number) for number in range(-(-count // store.shard))]

    def __len__(self) -> int:
        return self.count

    def batch(self, rng: SampleRNG, step: int, indices: Indices) -> Pairs:
        return self.select(rng.integers("pairs", step, indices, len(self)).tolist())

    def select(self, numbers: Sequence[int]) -> Pairs:
        """The pairs with these numbers, on the device."""
        sample, keys = torch.empty(len(numbers), *self.store.shape), torch.empty(len(numbers), dtype=torch.int64)
        for place, (shard, row) in enumerate(divmod(number, self.store.shard) for number in numbers):
            sample[place], keys[place] = self._shards[shard]["sample"][row], self._shards[shard]["key"][row]
        return Pairs(
            self.store.noise(numbers).to(self.device, non_blocking=True),
            sample.to(self.device, non_blocking=True),
            self.store.teacher.conditioner.encode(keys.to(self.device)).to(self.device),
        )


class PairsConfig(SourceConfig):
    """Noise-image pairs of the teacher's ODE, where the method needs them."""

    count: Count = Field(10_000, ge=1, le=10**9, description="number of noise-image pairs, such as 100k")
    steps: int | None = Field(
        None, ge=1, le=10_000, description="steps of the solver; the teacher's own number if none"
    )
    solver: SolverName | None = Field(None, description="solver of the teacher's ODE; the teacher's own if none")
    guidance: float | None = Field(
        None, ge=0, description="guidance weight of the teacher's samples; the method's own if none, or 1"
    )


class PairSource(Source[Pairs]):
    """Noise-image pairs from the store that all runs share; what is missing is made first."""

    name: ClassVar[str] = "pairs"
    batch_type: ClassVar[type] = Pairs
    Config: ClassVar[type[SourceConfig]] = PairsConfig
    config: PairsConfig

    @cached_property
    def store(self) -> PairStore:
        config = self.config
        return PairStore(self.teacher, steps=config.steps, solver=config.solver, guidance=self.guidance)

    def open(self, job: SourceJob) -> Batches[Pairs]:
        count = self.config.count
        store = self._store_for(job)
        mine = store.missing(count, rank=job.rank, world=job.world)
        if not mine:
            job.say(f"using {count:,} noise-image pairs from {store.folder}")
        elif count % store.shard and store.shards_of(count) - 1 in store.missing(count):
            job.say(f"note: pairs are kept {store.shard:,} in a file, and the last is filled; {count:,} are used")
        total = min(len(mine) * job.world * store.shard, -(-count // store.shard) * store.shard)
        store.shards.share(
            job, "making noise-image pairs", "pairs", total,
            lambda advance: store.make(count, job.device, rank=job.rank, world=job.world, advance=advance),
            during=self.teacher.denoiser.uneven,
        )  # fmt: skip
        opened = store.open(count, job.device)
        if job.rank == 0 and job.folder is not None:
            note_use(store.folder, store.teacher, job.folder)
        return opened

    def _store_for(self, job: SourceJob) -> PairStore:
        """The shared store, or one in the run's folder where that one lacks something and cannot be written."""
        store, folder = self.store, job.folder
        reason = unwritable(store.folder)
        if not reason or not store.missing(self.config.count) or folder is None:
            return store
        job.say(
            f"note: {store.folder} cannot be written ({reason}), so the noise-image pairs are made in {folder} for "
            "this run alone; DISTILLKIT_CACHE names another cache"
        )
        return PairStore(
            self.teacher, steps=store.steps, solver=store.solver, guidance=store.guidance, root=folder / "pairs"
        )

    def check(self) -> None:
        """Refuse guidance that the teacher cannot have, and pairs that the disk cannot hold."""
        self._check_guidance()
        needed = self.plan().disk_bytes
        disk = shutil.disk_usage(existing_parent(self.store.folder))
        free = disk.free
        # A place without any room is no disk; where it cannot be written, `open` goes to the run's folder.
        if needed > free and disk.total:
            raise DistillkitError(
                f"noise-image pairs need {needed / 2**20:,.0f} MiB in {self.store.folder} and {free / 2**20:,.0f} MiB "
                "are free; set DISTILLKIT_CACHE to a larger disk, or ask for fewer pairs"
            )

    def _check_guidance(self) -> None:
        if self.guidance != 1 and not self.teacher.guidable:
            raise UsageError(
                f"--pairs-guidance {self.guidance:g}: the teacher {self.teacher.spec.name} has no unconditional "
                "prediction to guide against; use guidance 1, or name another network to guide it: --guide-with NAME"
            )

    @property
    def cost(self) -> int:
        return round(self.config.count * self.evaluations)

    @property
    def guidance(self) -> float:
        return 1.0 if self.config.guidance is None else self.config.guidance

    @property
    def evaluations(self) -> float:
        """Of the teacher for one pair; those of a network that guides it by their share of the operations."""
        passes = 1.0 if self.guidance == 1 else 1 + (guide_cost(self.teacher) if self.teacher.guide else 1)
        return passes * solver_evaluations(self.store.solver, self.store.steps)

    def plan(self) -> SourcePlan:
        """What is missing of the pairs, and what it would take; a count of a whole shard is made in any case.

        Raises:
            UsageError: as `open`.
        """
        self._check_guidance()
        store, count = self.store, self.config.count
        missing = len(store.missing(count))
        made = missing * store.shard
        guided = "" if self.guidance == 1 else f", {guidance_title(self.guidance, self.teacher)}"
        return SourcePlan(
            f"{count:,} noise-image pairs ({store.solver}, {store.steps} steps{guided}), {made:,} to make, "
            f"memory-mapped from {store.folder}",
            evaluations=round(made * self.evaluations),
            disk_bytes=missing * store.shard_bytes,
            memory_bytes=-(-count // store.shard) * MAPPING_BYTES,
        )

    @classmethod
    def synthetic(cls, teacher: Teacher, device: torch.device) -> Batches[Pairs]:
        return SyntheticPairs(teacher, device)
