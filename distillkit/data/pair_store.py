"""Noise-image pairs of a teacher's ODE: a content-addressed, memory-mapped, restartable store that runs share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from distillkit.contracts.random import Indices, SampleRNG
from distillkit.contracts.source import Pairs
from distillkit.contracts.teacher import Teacher, guidance_title
from distillkit.data.identity import teacher_identity
from distillkit.data.shards import Shards, identity_hash
from distillkit.diffusion.solvers import SolverName
from distillkit.errors import DistillkitError
from distillkit.files import cache_folder, remove_leftovers

SHARD_PAIRS = 256
"""Most pairs in one shard, which is what an interruption can cost and what is solved in one pass."""

SHARD_BYTES = 2**23
"""Most bytes of samples in one shard, where a pair is large; a shard has one pair at least."""

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
