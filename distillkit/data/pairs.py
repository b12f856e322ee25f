"""Noise-image pairs of a teacher's ODE: a content-addressed, restartable store that runs share."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.random import Indices, SampleRNG
from distillkit.contracts.step import Pairs
from distillkit.contracts.teacher import Teacher
from distillkit.diffusion.schedules import karras_sigmas
from distillkit.diffusion.solvers import heun
from distillkit.files import cache_folder, canonical_json, write_bytes, write_json

log = logging.getLogger(__name__)

SHARD = 256
"""Pairs in one shard file: the unit that an interruption can cost."""


class PairStore:
    """Pairs (z, c, y) with y = Heun ODE of the teacher from sigma_max z under c, one shard file per 256.

    The folder's name is the hash of everything that determines the pairs, so a store never mixes two teachers,
    solvers or guidance weights. Larger sets extend smaller ones. Pair i depends on (seed, i) alone.

    Args:
        teacher: whose ODE is solved; moved to the device already.
        steps: Heun steps.
        guidance: classifier-free guidance weight of the teacher's samples.
        seed: seed of noise and conditions.
        root: where stores lie; the cache folder by default.
    """

    def __init__(
        self, teacher: Teacher, *, steps: int, guidance: float = 1.0, seed: int = 0, root: Path | None = None
    ) -> None:
        self.teacher, self.steps, self.guidance = teacher, steps, guidance
        self.rng = SampleRNG(seed)
        spec = teacher.spec
        self.identity: dict[str, Any] = {
            "format": 1,
            "weights_sha256": spec.weights_sha256,
            "solver": "heun",
            "steps": steps,
            "sigma": [repr(spec.sigma_min), repr(spec.sigma_max), repr(spec.rho)],
            "guidance": repr(guidance),
            "seed": seed,
            "shape": list(spec.shape),
            "num_classes": spec.num_classes,
            "shard": SHARD,
        }
        self.id = hashlib.sha256(canonical_json(self.identity).encode()).hexdigest()[:16]
        self.folder = (root or cache_folder() / "pairs") / f"{Path(spec.name).stem}-{self.id}"

    def missing(self, count: int) -> list[int]:
        """Numbers of the shards among the first `count` pairs that are absent or damaged."""
        return [shard for shard in range(-(-count // SHARD)) if self._read(shard) is None]

    def make(
        self, count: int, device: torch.device, *, rank: int = 0, world: int = 1, advance: Callable[[int], None]
    ) -> None:
        """Make this rank's part of the missing shards; `advance(pairs)` is called after each.

        May be interrupted at any time: complete shards stay, and the next call makes the others.
        """
        missing = self.missing(count)
        if missing and rank == 0:
            write_json(self.folder / "manifest.json", {**self.identity, "teacher": self.teacher.spec.name})
        for shard in missing[rank::world]:
            write_bytes(self._path(shard), self._solve(shard, device))
            advance(SHARD)

    def open(self, count: int, device: torch.device) -> LoadedPairs:
        """The first `count` pairs, verified; all must have been made."""
        shards = [self._read(shard) for shard in range(-(-count // SHARD))]
        complete = [shard for shard in shards if shard is not None]
        if len(complete) != len(shards):
            raise FileNotFoundError(f"{len(shards) - len(complete)} pair shards are missing in {self.folder}")
        fields = {name: torch.cat([shard[name] for shard in complete])[:count] for name in complete[0]}
        return LoadedPairs(fields, device)

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:06d}.safetensors"

    @torch.inference_mode()
    def _solve(self, shard: int, device: torch.device) -> bytes:
        indices = range(shard * SHARD, (shard + 1) * SHARD)
        spec = self.teacher.spec
        noise = self.rng.normal("pairs/noise", 0, indices, spec.shape)
        condition = self.teacher.draw_condition(self.rng.uniform("pairs/condition", 0, indices))
        told = condition.to(device)
        sigmas = karras_sigmas(self.steps, sigma_min=spec.sigma_min, sigma_max=spec.sigma_max, rho=spec.rho)
        sample = heun(lambda x, s: self.teacher(x, s, told, self.guidance), noise.to(device), sigmas).cpu()
        tensors = {"noise": noise, "sample": sample, **{f"condition.{k}": v for k, v in condition.items()}}
        return save(tensors, metadata={"id": self.id, "sha256": content_hash(tensors)})

    def _read(self, shard: int) -> dict[str, Tensor] | None:
        """The shard's tensors if it is there, whole and of this store; else None, after a warning if it is damaged."""
        path = self._path(shard)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            log.warning("pair shard %s is damaged (%s); it will be made again", path, error)
            return None
        if metadata.get("id") != self.id or metadata.get("sha256") != content_hash(tensors):
            log.warning("pair shard %s does not match its recorded hash; it will be made again", path)
            return None
        return tensors


class LoadedPairs:
    """Opened pairs, drawn with replacement by (seed, step, sample index)."""

    def __init__(self, fields: dict[str, Tensor], device: torch.device) -> None:
        self.noise, self.sample = fields["noise"], fields["sample"]
        self.condition = Condition(
            **{name.removeprefix("condition."): v for name, v in fields.items() if name.startswith("condition.")}
        )
        self.device = device

    def __len__(self) -> int:
        return len(self.noise)

    def batch(self, rng: SampleRNG, step: int, indices: Indices) -> Pairs:
        return self.select(rng.integers("pairs", step, indices, len(self)))

    def select(self, chosen: Tensor | slice) -> Pairs:
        """The pairs at the given places, on the device."""
        return Pairs(
            self.noise[chosen].to(self.device, non_blocking=True),
            self.sample[chosen].to(self.device, non_blocking=True),
            self.condition.select(chosen).to(self.device),
        )


def content_hash(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
