"""Noise-image pairs of the teacher as a source of a run's batches."""

from __future__ import annotations

import shutil
from functools import cached_property
from typing import ClassVar

import torch
from pydantic import Field

from distillkit.contracts.source import Batches, Pairs, Source, SourceConfig, SourceJob, SourcePlan
from distillkit.contracts.teacher import Teacher, guidance_title
from distillkit.counts import Count
from distillkit.data.pair_notes import note_use
from distillkit.data.pair_store import PairStore
from distillkit.data.synthetic import SyntheticPairs
from distillkit.diffusion.solvers import SolverName, solver_evaluations
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import existing_parent, unwritable
from distillkit.models.guide_cost import guide_cost

MAPPING_BYTES = 4096
"""Memory that one mapped shard takes beside its pages, which belong to the system's cache."""


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
