"""Snapshots of averages of the weights, which stay when checkpoints are dropped: the folder `snapshots/` of a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillkit.engine.saved import link, sealed, write_whole
from distillkit.files import retried, sync_folder
from distillkit.students.checkpoints import STATE, groups_of, read_state
from distillkit.students.snapshots import step_of


@dataclass(frozen=True)
class Snapshot:
    """What is to be kept of a checkpoint.

    Args:
        averages: the relative width of each power-function average, by its name in the checkpoint.
        images: of the whole training so far. seen: of those that the averages are over.
        since: images before these, when the averages began.
    """

    averages: Mapping[str, float]
    images: int
    seen: int
    since: int


class Snapshots:
    """A folder a snapshot, named by its step; written by the first process alone.

    Its files are second names of a checkpoint's, so that nothing is written twice.

    Args:
        folder: where they are; made at the first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """Of the snapshot of a step."""
        return self.folder / f"step-{step:09d}"

    def keep(self, checkpoint: Path, snapshot: Snapshot, described: Mapping[str, Any]) -> None:
        """Keep the averages of a checkpoint that is whole.

        Args:
            described: what was trained, as plain data.

        Raises:
            DistillkitError: when the disk refuses it for good.
        """
        state = read_state(checkpoint / STATE)
        groups, final = groups_of(state), self.path(state.step)
        names = [name for group in snapshot.averages for name in groups[group]]
        values = {
            "images": snapshot.images, "seen": snapshot.seen, "since": snapshot.since,
            "averages": dict(snapshot.averages), **described,
        }  # fmt: skip
        body = {"step": state.step, "values": values, "sha256": {name: state.sha256[name] for name in names}}
        aside = self.folder / f".{final.name}.{os.getpid()}"

        def write() -> None:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            for name in names:
                link(checkpoint / name, aside / name)
            write_whole(aside / STATE, sealed(body))
            sync_folder(aside)
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)
            sync_folder(self.folder)

        retried(write, final)

    def cut_back(self, step: int) -> None:
        """Remove what is of later steps, which are trained again, and what an interruption left behind."""
        if not self.folder.is_dir():
            return
        for path in self.folder.iterdir():
            number = step_of(path)
            if path.name.startswith(".step-") or (number is not None and number > step):
                shutil.rmtree(path, ignore_errors=True)
