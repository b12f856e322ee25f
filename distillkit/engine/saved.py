"""One checkpoint: what it holds and how its files are written; `distillkit.engine.checkpoint` keeps them in order."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit.engine.processes import Processes
from distillkit.files import canonical_json
from distillkit.pieces import Held, Part, held_in, places_of
from distillkit.reading import Unreadable
from distillkit.students.checkpoints import STATE, State, groups_of, read_state
from distillkit.tensors import stream_tensors

Tensors = dict[str, dict[str, Tensor]]
"""Group, which names its files -> tensors."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole; its tensors are read when they are asked for.

    Args:
        held: where its tensors are, by group and name.
        processes: that read it together.
    """

    step: int
    values: dict[str, Any]
    folder: Path
    held: Mapping[str, Mapping[str, Held]]
    processes: Processes

    def whole(self, group: str) -> dict[str, Tensor]:
        """The tensors of a group on the CPU, each whole; nothing where there is no such group."""
        return {name: held.read() for name, held in self.held.get(group, {}).items()}

    @property
    def tensors(self) -> Tensors:
        """All tensors, whole."""
        return {group: self.whole(group) for group in self.held}

    def fill(self, tensors: Tensors) -> None:
        """Read into tensors of these groups, names and shapes, sharded in any way; called by all processes.

        Raises:
            DistillkitError: when a file cannot be read.
        """
        if self.processes.world > 1:
            from distillkit.engine.sharding import read_into

            wanted = {group: {name: self.held[group][name] for name in inner} for group, inner in tensors.items()}
            return read_into(tensors, wanted, self.processes)
        for group, inner in tensors.items():
            for name, tensor in inner.items():
                self.held[group][name].read_into(tensor)


def held_at(path: Path) -> tuple[State, dict[str, dict[str, Held]]]:
    """The state of a checkpoint, and where its tensors are."""
    state = read_state(path / STATE)
    if state.seal is None:
        raise Unreadable(f"{path / STATE} has no recorded hash of itself")
    return state, {group: held_in([path / name for name in names]) for group, names in groups_of(state).items()}


def on_cpu(tensor: Tensor) -> Tensor:
    """A contiguous copy, which the training does not change."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def write_parts(path: Path, parts: Mapping[str, Part]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    return stream_tensors(path, {name: part.tensor for name, part in parts.items()}, places_of(parts))


def sealed(body: Mapping[str, Any]) -> bytes:
    """state.json, with the hash of all that is in it."""
    seal = hashlib.sha256(canonical_json(body).encode()).hexdigest()
    return json.dumps({**body, "self": seal}, indent=1).encode()


def link(file: Path, link: Path) -> None:
    """A second name for a file, or a copy where the file system has no such names."""
    try:
        link.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, link)
        with link.open("rb+") as copied:
            os.fsync(copied.fileno())


def write_whole(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
