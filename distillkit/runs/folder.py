"""A run's folder: one run, one process at a time, nothing overwritten."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel

from distillkit.environment import environment
from distillkit.errors import UsageError
from distillkit.files import retried, write_bytes, write_json
from distillkit.reading import Unreadable, read_mapping
from distillkit.runs.config import ConfigFile, differences, read_config, to_yaml
from distillkit.text import short

CONFIG, LOCK, OWNER = "config.yaml", ".lock", ".owner.json"


class RunFolder:
    """The folder that holds all there is to know of a run.

    Args:
        path: the folder.
        command: the command that works in it, such as "distillkit run kd", for messages.
    """

    def __init__(self, path: Path, command: str) -> None:
        self.path = path
        self.resume_command = f"{command} --resume {shlex.quote(str(path))}"

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def finished(self) -> bool:
        return (self / "record.json").is_file()

    def saved_config(self) -> ConfigFile:
        """The configuration that the run was started with.

        Raises:
            UsageError: when the folder holds no run; says what it holds.
        """
        if not (self / CONFIG).is_file():
            if not self.path.is_dir():
                raise UsageError(f"nothing to resume: the folder {self.path} does not exist")
            found = ", ".join(sorted(p.name for p in self.path.iterdir())[:8]) or "nothing"
            raise UsageError(f"nothing to resume: {self.path} has no {CONFIG} (found: {found})")
        return read_config(self / CONFIG)

    def begin(self, config: BaseModel) -> None:
        """Claim an empty or new folder for a run and write its configuration and circumstances.

        Raises:
            UsageError: when the folder already holds something.
        """
        occupied = [p.name for p in self.path.iterdir() if p.name not in (LOCK, OWNER)] if self.path.is_dir() else []
        if CONFIG in occupied:
            raise UsageError(
                f"{self.path} already holds a run. Go on with it by `{self.resume_command}`, "
                "or choose another --output-dir."
            )
        if occupied:
            raise UsageError(
                f"{self.path} is not empty ({', '.join(sorted(occupied)[:5])}); choose another --output-dir"
            )
        write_bytes(self / CONFIG, to_yaml(config).encode())
        write_json(self / "environment.json", environment())

    def resume(self, config: BaseModel, say: Callable[[str], None]) -> None:
        """Refuse to go on with a configuration that would change the result; a longer training is an extension.

        Raises:
            UsageError: listing the keys that differ.
        """
        asked, saved = config.model_dump(mode="json"), self.saved_config().values
        before, now = saved.get("training", {}).get("duration"), asked.get("training", {}).get("duration")
        extended = isinstance(before, int) and isinstance(now, int) and now > before
        if found := differences(saved, asked, ignoring={"training.duration"} if extended else frozenset()):
            raise UsageError(
                f"{self.path} was started with another configuration:\n  "
                + "\n  ".join(found)
                + "\nDrop these options to resume it, or choose another --output-dir for a new run."
            )
        if extended:
            say(f"extended from {before:,} to {now:,} images; schedules and stages now span the whole")
            write_bytes(self / CONFIG, to_yaml(config).encode())

    @contextmanager
    def locked(self, *, main: bool = True) -> Iterator[None]:
        """Hold the folder for this job; the system frees it when the process ends, however it ends.

        Args:
            main: whether this is the job's first process; the others rely on it.

        Raises:
            UsageError: when another process works in the folder; names it.
        """
        if not main:
            yield
            return
        retried(lambda: self.path.mkdir(parents=True, exist_ok=True), self.path)
        lock = FileLock(self / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UsageError(f"another process is at work in {self.path}{self._owner()}") from error
        try:
            write_json(self / OWNER, {"pid": os.getpid(), "host": socket.gethostname()})
            yield
        finally:
            (self / OWNER).unlink(missing_ok=True)
            lock.release()

    def _owner(self) -> str:
        try:
            owner = read_mapping(self / OWNER)
            process = f"process {short(owner['pid'])} on {short(owner['host'])}"
            return f" ({process}); wait for it or choose another --output-dir"
        except (Unreadable, KeyError):
            return "; wait for it or choose another --output-dir"
