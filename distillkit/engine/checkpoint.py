"""Checkpoints: safetensors and JSON, written whole or not at all, checked when read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from distillkit.errors import DistillkitError, UsageError
from distillkit.files import WriteError, canonical_json, retried, sync_folder, write_bytes
from distillkit.reading import Unreadable
from distillkit.students.checkpoints import read_part, read_state

log = logging.getLogger(__name__)

STATE = "state.json"
Tensors = dict[str, dict[str, Tensor]]
"""File stem -> tensors."""


@dataclass(frozen=True)
class Checkpoint:
    step: int
    tensors: Tensors
    values: dict[str, Any]
    folder: Path


class Checkpoints:
    """The folder `checkpoints/` of a run: one folder a checkpoint, the file `latest` naming the newest, and `best`, the
    checkpoint with the best figure so far.

    Args:
        folder: where they are; made at the first save.
        keep: how many of the newest are kept, beside the best.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def clean(self) -> None:
        """Remove what an interrupted save left behind; a best checkpoint that was put aside and not replaced yet comes
        back.

        Raises:
            WriteError: naming a file where a checkpoint's folder is due.
        """
        for path in self.folder.glob("step-*"):
            if not path.is_dir():
                raise WriteError(f"{path} is a file, and the folder of a checkpoint is due there. Move it away.")
        former = self.folder / ".best-former"
        if former.is_dir() and not (self.folder / "best").exists():
            former.rename(self.folder / "best")
        for leftover in (*self.folder.glob(".step-*"), *self.folder.glob(".best*")):
            shutil.rmtree(leftover, ignore_errors=True)

    @property
    def steps(self) -> list[int]:
        """Of the checkpoints that are there, ascending."""
        return [int(path.name.removeprefix("step-")) for path in reversed(self._present())]

    @property
    def best_step(self) -> int | None:
        """Of the best checkpoint; None where there is none that can be read."""
        try:
            return read_state(self.folder / "best" / STATE).step
        except Unreadable:
            return None

    def keep_best(self, step: int) -> None:
        """Keep the checkpoint of this step as `best`, whatever is dropped later; it takes no space while it is also
        among the newest.

        Raises:
            DistillkitError: when the disk refuses it for good.
        """
        final, former = self.folder / "best", self.folder / ".best-former"
        aside = self.folder / f".best.{os.getpid()}"

        def keep() -> None:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            for file in self._named(step).glob("[!.]*"):
                _link(file, aside / file.name)
            sync_folder(aside)
            shutil.rmtree(former, ignore_errors=True)
            if final.exists():
                final.rename(former)
            aside.rename(final)
            sync_folder(self.folder)
            shutil.rmtree(former, ignore_errors=True)

        retried(keep, final)

    def save(self, step: int, tensors: Tensors, values: dict[str, Any]) -> Path:
        """Write a checkpoint aside, flush it to the disk, rename it, then drop the oldest.

        Raises:
            DistillkitError: when the disk refuses it for good; older checkpoints are untouched.
        """
        final = self._named(step)
        aside = self.folder / f".step-{step:09d}.{os.getpid()}"

        def write() -> None:
            shutil.rmtree(aside, ignore_errors=True)
            try:
                aside.mkdir(parents=True)
                hashes = {
                    f"{stem}.safetensors": _write(aside / f"{stem}.safetensors", save(_flat(group)))
                    for stem, group in tensors.items()
                }
                _write(aside / STATE, _sealed({"step": step, "values": values, "sha256": hashes}))
                sync_folder(aside)
                if final.exists():
                    shutil.rmtree(final)
                aside.rename(final)
                sync_folder(self.folder)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise

        retried(write, final)
        self.settle(step)
        return final

    def settle(self, step: int) -> None:
        """Name the checkpoint of this step as the newest, and drop the oldest: the end of `save`, which a kill may have
        prevented.

        Raises:
            WriteError: when the disk refuses it for good.
        """
        latest, name = self.folder / "latest", f"{self._named(step).name}\n".encode()
        if not latest.is_file() or latest.read_bytes() != name:
            write_bytes(latest, name)
        for old in self._present()[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def update(self, step: int, values: Mapping[str, Any]) -> None:
        """Change some values of a checkpoint, whole or not at all.

        Raises:
            DistillkitError: when the disk refuses it for good.
        """
        path = self._named(step) / STATE
        state = read_state(path)
        body = {"step": state.step, "values": {**state.values, **values}, "sha256": state.sha256}
        write_bytes(path, _sealed(body))

    def load(self, selector: Literal["latest", "best"] | int = "latest") -> Checkpoint:
        """The newest checkpoint that is whole, a damaged one being passed over with a warning; or the best, or that of
        a step.

        Raises:
            UsageError: when there is no such checkpoint; names those there are.
            DistillkitError: when it is damaged, or all are.
        """
        if selector != "latest":
            return self._one(self.folder / "best" if selector == "best" else self._named(selector))
        present = self._present()
        if not present:
            found = sorted(p.name for p in self.folder.parent.iterdir()) if self.folder.parent.is_dir() else []
            raise UsageError(
                f"nothing to resume in {self.folder.parent}: no checkpoint there"
                + (
                    f" (found: {', '.join(found[:8])})"
                    if found
                    else " (the folder does not exist)"
                    if not self.folder.parent.is_dir()
                    else " (the folder is empty)"
                )
            )
        damaged: list[str] = []
        for path in present:
            try:
                checkpoint = self._read(path)
            except Unreadable as error:
                damaged.append(f"{path.name} ({error})")
                continue
            if damaged:
                log.warning("checkpoint %s is damaged; going on from %s instead", ", ".join(damaged), path.name)
            return checkpoint
        raise DistillkitError(f"every checkpoint in {self.folder} is damaged: {'; '.join(damaged)}")

    def _named(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def _present(self) -> list[Path]:
        """The newest first."""
        return sorted((p for p in self.folder.glob("step-*") if p.name[5:].isdecimal() and p.is_dir()), reverse=True)

    def _one(self, path: Path) -> Checkpoint:
        if not path.is_dir():
            there = ", ".join(f"{step:,}" for step in self.steps) or "none"
            raise UsageError(f"there is no checkpoint {path}; checkpoints of steps: {there}")
        try:
            return self._read(path)
        except Unreadable as error:
            raise DistillkitError(f"the checkpoint {path} is damaged: {error}") from error

    def _read(self, path: Path) -> Checkpoint:
        state = read_state(path / STATE)
        if state.seal is None:
            raise Unreadable(f"{path / STATE} has no recorded hash of itself")
        tensors = {Path(name).stem: read_part(path, name, state)[0] for name in state.sha256}
        return Checkpoint(state.step, tensors, state.values, path)


def _flat(group: dict[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses tensors that share memory or are not contiguous (channels_last weights).
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in group.items()
    }


def _sealed(body: Mapping[str, Any]) -> bytes:
    """state.json, with the hash of all that is in it."""
    seal = hashlib.sha256(canonical_json(body).encode()).hexdigest()
    return json.dumps({**body, "self": seal}, indent=1).encode()


def _link(file: Path, link: Path) -> None:
    """A second name for a file, or a copy where the file system has no such names."""
    try:
        link.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, link)
        with link.open("rb+") as copied:
            os.fsync(copied.fileno())


def _write(path: Path, data: bytes) -> str:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()
