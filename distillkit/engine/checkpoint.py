"""Checkpoints: safetensors and JSON, written whole or not at all beside the training, checked when read."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distillkit.engine.background import Background
from distillkit.engine.processes import Processes
from distillkit.engine.saved import Checkpoint, Tensors, held_at, link, on_cpu, sealed, write_parts, write_whole
from distillkit.engine.snapshots import Snapshot, Snapshots
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import WriteError, retried, sync_folder, write_bytes
from distillkit.pieces import Part
from distillkit.reading import Unreadable
from distillkit.students.checkpoints import STATE, file_name, read_state, verify
from distillkit.students.snapshots import FOLDER

DESCRIBED = ("student", "teacher")
"""Values of a checkpoint that say what is trained."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """What the last checkpoint took.

    Args:
        size: bytes of all files. seconds: of writing. held_up: seconds that the training waited.
    """

    step: int
    size: int
    seconds: float
    held_up: float


class Checkpoints:
    """The folder `checkpoints/` of a run: one folder a checkpoint, the file `latest` naming the newest, and `best`, the
    checkpoint with the best figure so far.

    A checkpoint is copied at once and written by a thread, while the training goes on. Every process writes what it
    holds of sharded tensors; the first puts the checkpoint in its place when all have written.

    Args:
        folder: where they are; made at the first save. All processes share it.
        keep: how many of the newest are kept, beside the best.

    Attributes:
        snapshots: what stays of checkpoints that are dropped, in the folder `snapshots` beside.
        written: what the last took; None before there is one.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep, self.processes = folder, keep, Processes()
        self.snapshots = Snapshots(folder.parent / FOLDER)
        # What threads say to each other is nothing that the training says meanwhile.
        self._writers = Processes()
        self.written: Written | None = None
        self._writing: Background[Written] | None = None

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
        self.wait()
        final, former = self.folder / "best", self.folder / ".best-former"
        aside = self.folder / f".best.{os.getpid()}"

        def keep() -> None:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            for file in self.path(step).glob("[!.]*"):
                link(file, aside / file.name)
            sync_folder(aside)
            shutil.rmtree(former, ignore_errors=True)
            if final.exists():
                final.rename(former)
            aside.rename(final)
            sync_folder(self.folder)
            shutil.rmtree(former, ignore_errors=True)

        retried(keep, final)

    def save(self, step: int, tensors: Tensors, values: dict[str, Any], snapshot: Snapshot | None = None) -> None:
        """Begin a checkpoint: the training may go on when this returns, and `wait` for it. Called by all processes.

        It is written aside and flushed to the disk; then the first process adds state.json, with the hashes of all
        files, renames the folder and drops the oldest checkpoint.

        Args:
            values: plain, kept in state.json; the first process' count.
            snapshot: averages in it that stay when it is dropped.

        Raises:
            DistillkitError: when the former one could not be written, or what is to be saved not be copied.
        """
        began = time.monotonic()
        self.wait()
        aside = self._aside(step)
        if self.processes.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
        self._writers.join()
        files, values = self._copied(tensors), copy.deepcopy(values)
        held_up = time.monotonic() - began
        self._writing = Background(lambda: self._write(step, files, values, snapshot, held_up), "checkpoint")

    def wait(self) -> None:
        """Wait until the checkpoint that was begun is written.

        Raises:
            WriteError: when the disk of any process refuses it for good; older checkpoints are untouched.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            self.written = writing.result()

    def settle_down(self) -> None:
        """As `wait`, after something else has failed: what comes of the checkpoint is the lesser news."""
        writing, self._writing = self._writing, None
        if writing is not None and isinstance(error := writing.wait(), DistillkitError):
            log.warning("%s", error)

    @property
    def failed(self) -> bool:
        """Whether the checkpoint that was begun could not be written, as `wait` will say."""
        return self._writing is not None and self._writing.failed

    def _copied(self, tensors: Tensors) -> dict[str, dict[str, Part]]:
        """What this process is to write, by the names of its files."""
        if self.processes.world > 1:
            from distillkit.engine.sharding import staged

            return staged(tensors, self.processes)
        return {
            file_name(group): {name: Part.whole(on_cpu(tensor)) for name, tensor in inner.items()}
            for group, inner in tensors.items()
        }

    def _write(
        self, step: int, files: dict[str, dict[str, Part]], values: dict[str, Any], snapshot: Snapshot | None,
        held_up: float,
    ) -> Written:  # fmt: skip
        """Write this process' files and hear of the others'; the first completes the checkpoint."""
        began, aside, hashes = time.monotonic(), self._aside(step), {}
        problem: BaseException | None = None
        try:
            for name, parts in files.items():
                retried(lambda: hashes.update({name: write_parts(aside / name, parts)}), aside / name)  # noqa: B023
        except BaseException as error:
            problem = error
        reports = self._writers.gather((hashes, _spoken(problem)))
        said = next((error for _, error in reports if error), None)
        if said is None and self._writers.rank == 0:
            try:
                self._complete(step, reports, values, snapshot)
            except BaseException as error:
                problem = error
        said = self._writers.first(said or _spoken(problem))
        if said is not None:
            if self._writers.rank == 0:
                shutil.rmtree(aside, ignore_errors=True)
            raise problem or said
        size = sum(path.stat().st_size for path in self.path(step).glob("*.safetensors"))
        return Written(step, size, time.monotonic() - began, held_up)

    def _complete(
        self, step: int, reports: list[tuple[dict[str, str], WriteError | None]], values: dict[str, Any],
        snapshot: Snapshot | None = None,
    ) -> None:  # fmt: skip
        """Add state.json to what all have written, and put the checkpoint in its place."""
        final, aside = self.path(step), self._aside(step)
        hashes: dict[str, str] = {}
        for rank, (own, _) in enumerate(reports):
            if absent := [name for name in own if not (aside / name).is_file()]:
                raise WriteError(
                    f"{aside / absent[0]} was written by process {rank} and is not to be seen by process 0: processes "
                    "on several machines need an --output-dir on a file system that all of them share"
                )
            hashes |= own

        def complete() -> None:
            if aside.is_dir():
                write_whole(aside / STATE, sealed({"step": step, "values": values, "sha256": hashes}))
                sync_folder(aside)
                if final.exists():
                    shutil.rmtree(final)
                aside.rename(final)
            sync_folder(self.folder)

        retried(complete, final)
        if snapshot is not None:
            self.keep_snapshot(step, snapshot, values)
        self.settle(step)

    def keep_snapshot(self, step: int, snapshot: Snapshot, values: Mapping[str, Any]) -> None:
        """Keep averages of the checkpoint of a step, which is whole.

        Args:
            values: of the checkpoint.

        Raises:
            DistillkitError: when the disk refuses it for good.
        """
        described = {name: values[name] for name in DESCRIBED if values.get(name) is not None}
        self.snapshots.keep(self.path(step), snapshot, described)

    def settle(self, step: int) -> None:
        """Name the checkpoint of this step as the newest, and drop the oldest: the end of `save`, which a kill may have
        prevented.

        Raises:
            WriteError: when the disk refuses it for good.
        """
        latest, name = self.folder / "latest", f"{self.path(step).name}\n".encode()
        if not latest.is_file() or latest.read_bytes() != name:
            write_bytes(latest, name)
        # One of a later step was damaged, and is written again.
        for old in [path for path in self._present() if path <= self.path(step)][self.keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def update(self, step: int, values: Mapping[str, Any]) -> None:
        """Change some values of a checkpoint, whole or not at all.

        Raises:
            DistillkitError: when the disk refuses it for good.
        """
        self.wait()
        path = self.path(step) / STATE
        state = read_state(path)
        body = {"step": state.step, "values": {**state.values, **values}, "sha256": state.sha256}
        write_bytes(path, sealed(body))

    def load(self, selector: Literal["latest", "best"] | int = "latest") -> Checkpoint:
        """The newest checkpoint that is whole, a damaged one being passed over with a warning; or the best, or that of
        a step. Called by all processes, which share the work of reading every file and agree on what they find.

        Raises:
            UsageError: when there is no such checkpoint; names those there are.
            DistillkitError: when it is damaged, or all are.
        """
        self.wait()
        if selector != "latest":
            return self._one(self.folder / "best" if selector == "best" else self.path(selector))
        present = self.processes.first(self._present())
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
            if damaged and self.processes.rank == 0:
                log.warning("checkpoint %s is damaged; going on from %s instead", ", ".join(damaged), path.name)
            return checkpoint
        raise DistillkitError(f"every checkpoint in {self.folder} is damaged: {'; '.join(damaged)}")

    def path(self, step: int) -> Path:
        """Of the checkpoint of a step."""
        return self.folder / f"step-{step:09d}"

    def _aside(self, step: int) -> Path:
        """Where a checkpoint is while it is written; all processes know the name."""
        return self.folder / f".step-{step:09d}"

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
        """A checkpoint all of whose files are as they were written."""
        problem = ""
        try:
            state, held = held_at(path)
            for name in sorted(state.sha256)[self.processes.rank :: self.processes.world]:
                verify(path, name, state)
        except Unreadable as error:
            problem = str(error)
        if problem := next(filter(None, self.processes.gather(problem)), ""):
            raise Unreadable(problem)
        return Checkpoint(state.step, state.values, path, held, self.processes)


def _spoken(problem: BaseException | None) -> WriteError | None:
    """A failure as the other processes hear of it."""
    if problem is None or isinstance(problem, WriteError):
        return problem
    return WriteError(f"a checkpoint could not be written: {problem or type(problem).__name__}")
