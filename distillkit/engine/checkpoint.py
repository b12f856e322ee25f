"""Checkpoints: safetensors and JSON, written whole or not at all, checked when read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from distillkit.errors import DistillkitError, UsageError
from distillkit.files import canonical_json, retried, sync_folder, write_bytes

log = logging.getLogger(__name__)

Tensors = dict[str, dict[str, Tensor]]
"""File stem -> tensors."""


@dataclass(frozen=True)
class Checkpoint:
    step: int
    tensors: Tensors
    values: dict[str, Any]


class Checkpoints:
    """The folder `checkpoints/` of a run: one folder a checkpoint, and the file `latest` naming the newest.

    Args:
        folder: where they lie; made at the first save.
        keep: how many of the newest are kept.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def clean(self) -> None:
        """Remove what an interrupted save left behind."""
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def save(self, step: int, tensors: Tensors, values: dict[str, Any]) -> Path:
        """Write a checkpoint aside, flush it to the disk, rename it, then drop the oldest.

        Raises:
            DistillkitError: when the disk refuses it for good; older checkpoints are untouched.
        """
        final = self.folder / f"step-{step:09d}"
        aside = self.folder / f".step-{step:09d}.{os.getpid()}"

        def write() -> None:
            shutil.rmtree(aside, ignore_errors=True)
            try:
                aside.mkdir(parents=True)
                hashes = {
                    f"{stem}.safetensors": _write(aside / f"{stem}.safetensors", save(_flat(group)))
                    for stem, group in tensors.items()
                }
                body = {"step": step, "values": values, "sha256": hashes}
                body["self"] = hashlib.sha256(canonical_json(body).encode()).hexdigest()
                _write(aside / "state.json", json.dumps(body, indent=1).encode())
                sync_folder(aside)
                if final.exists():
                    shutil.rmtree(final)
                aside.rename(final)
                sync_folder(self.folder)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise

        retried(write, final)
        write_bytes(self.folder / "latest", f"{final.name}\n".encode())
        for old in self._present()[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def load(self) -> Checkpoint:
        """The newest checkpoint that is whole; a damaged one is passed over with a warning.

        Raises:
            UsageError: when there is no checkpoint.
            DistillkitError: when there are some and all are damaged.
        """
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
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                damaged.append(f"{path.name} ({error})")
                continue
            if damaged:
                log.warning("checkpoint %s is damaged; going on from %s instead", ", ".join(damaged), path.name)
            return checkpoint
        raise DistillkitError(f"every checkpoint in {self.folder} is damaged: {'; '.join(damaged)}")

    def _present(self) -> list[Path]:
        return sorted((p for p in self.folder.glob("step-*") if p.is_dir()), reverse=True)

    def _read(self, path: Path) -> Checkpoint:
        body = json.loads((path / "state.json").read_bytes())
        recorded = body.pop("self")
        if hashlib.sha256(canonical_json(body).encode()).hexdigest() != recorded:
            raise ValueError("state.json does not match its recorded hash")
        tensors: Tensors = {}
        for name, expected in body["sha256"].items():
            data = (path / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != expected:
                raise ValueError(f"{name} does not match its recorded sha256")
            tensors[Path(name).stem] = load(data)
        return Checkpoint(body["step"], tensors, body["values"])


def _flat(group: dict[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses tensors that share memory or are not contiguous (channels_last weights).
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in group.items()
    }


def _write(path: Path, data: bytes) -> str:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()
