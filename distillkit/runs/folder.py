"""A run's folder: one run, one process at a time, nothing overwritten."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel

from distillkit.environment import environment
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import LEFTOVER, existing_parent, remove_leftovers, retried, write_bytes, write_error, write_json
from distillkit.reading import Missing, Unreadable, read_mapping
from distillkit.runs.config import differences, to_yaml
from distillkit.runs.validation import ConfigFile, read_config, validated
from distillkit.text import short

CONFIG, LOCK, OWNER = "config.yaml", ".lock", ".owner.json"
CIRCUMSTANCES, INPUTS = "environment.json", "inputs.json"


class RunFolder:
    """The folder that holds all there is to know of a run.

    Args:
        path: the folder.
        command: the command that works in it, such as "distillkit run kd", for messages.
    """

    def __init__(self, path: Path, command: str) -> None:
        self.path, self.command = path, command
        self.resume_command = f"{command} --resume {shlex.quote(str(path))}"

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def finished(self) -> bool:
        """Whether there is a record, and of the whole: not one from before the run was extended."""
        try:
            recorded = read_mapping(self / "record.json").get("config")
        except Missing:
            return False
        except Unreadable:
            return True
        return not _extends(recorded, read_config(self / CONFIG).values if (self / CONFIG).is_file() else {})

    def saved_config(self) -> ConfigFile:
        """The configuration that the run was started with.

        Raises:
            UsageError: when the folder holds no run; says what it holds.
        """
        if not (self / CONFIG).is_file():
            if not self.path.is_dir():
                raise UsageError(f"nothing to resume: the folder {self.path} does not exist")
            held = self._held()
            if not held and any(self.path.iterdir()):
                raise UsageError(
                    f"nothing to resume: the run in {self.path} was stopped before it began. Give its first command "
                    "again, without --resume"
                )
            found = ", ".join(sorted(held)[:8]) or "nothing"
            raise UsageError(f"nothing to resume: {self.path} has no {CONFIG} (found: {found})")
        return read_config(self / CONFIG)

    def _held(self) -> list[str]:
        """The names in the folder, but for those of a run that was stopped before it wrote its configuration."""
        own = {LOCK, OWNER, CIRCUMSTANCES, INPUTS}
        return [p.name for p in self.path.iterdir() if p.name not in own and not LEFTOVER.fullmatch(p.name)]

    def _check_place(self) -> None:
        if not (there := existing_parent(self.path)).is_dir():
            raise UsageError(f"{there} is a file, not a folder; choose another --output-dir")

    def check_empty(self) -> None:
        """Refuse a folder in which no run can begin.

        Raises:
            UsageError: when the folder already holds something, or is none.
        """
        self._check_place()
        occupied = self._held() if self.path.is_dir() else []
        if CONFIG in occupied:
            raise UsageError(
                f"{self.path} already holds a run. Go on with it by `{self.resume_command}`, "
                "or choose another --output-dir."
            )
        if occupied:
            raise UsageError(
                f"{self.path} is not empty ({', '.join(sorted(occupied)[:5])}); choose another --output-dir"
            )

    def begin(self, config: BaseModel, inputs: Mapping[str, str] = MappingProxyType({})) -> None:
        """Claim an empty or new folder for a run and write its circumstances and, last, its configuration.

        Args:
            inputs: as `resume` takes them.

        Raises:
            UsageError: as `check_empty`.
        """
        self.check_empty()
        write_json(self / CIRCUMSTANCES, environment())
        write_json(self / INPUTS, dict(inputs))
        write_bytes(self / CONFIG, to_yaml(config).encode())

    def check_same(self, config: BaseModel) -> tuple[int, int] | None:
        """Refuse to go on with a configuration that would change the result; a longer training is an extension.

        Returns:
            The images before and now, where it is one.

        Raises:
            UsageError: listing the keys that differ.
        """
        file = self.saved_config()
        # Settings that have come since the run began have their defaults.
        saved = validated(type(config), file.values, file, {}).model_dump(mode="json")
        asked = config.model_dump(mode="json")
        extended = _extends(saved, asked)
        if found := differences(saved, asked, ignoring={"training.duration"} if extended else frozenset()):
            raise UsageError(
                f"{self.path} was started with another configuration:\n  "
                + "\n  ".join(found)
                + "\nDrop these options to resume it, or choose another --output-dir for a new run."
            )
        return (saved["training"]["duration"], asked["training"]["duration"]) if extended else None

    def resume(
        self, config: BaseModel, say: Callable[[str], None], inputs: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Go on with a run under the same configuration, or a longer one, which is written then, and the same inputs.

        Args:
            inputs: what the run reads beside its configuration, such as the teacher, in words that end in its identity:
                that is what is compared.

        Raises:
            UsageError: as `check_same`, or listing the inputs that differ.
        """
        self._require_same(inputs, say)
        if extended := self.check_same(config):
            before, now = extended
            say(f"extended from {before:,} to {now:,} images; schedules and stages now span the whole")
            write_bytes(self / CONFIG, to_yaml(config).encode())

    def _require_same(self, inputs: Mapping[str, str], say: Callable[[str], None]) -> None:
        path = self / INPUTS
        try:
            held = read_mapping(path)
            saved = {name: value if isinstance(value, str) else short(value) for name, value in held.items()}
        except Missing:
            say(f"{path} is not there: whether teacher and data are those that the run was begun with is not checked")
            write_json(path, dict(inputs))
            return
        except Unreadable as error:
            raise DistillkitError(
                f"{error}. Whether teacher and data are those that the run was begun with cannot "
                "be checked; remove the file to go on without"
            ) from error
        changed = [
            f"{name}: {saved.get(name, 'none')} when the run began, {inputs.get(name, 'none')} now"
            for name in sorted({*saved, *inputs})
            if _identity(saved.get(name)) != _identity(inputs.get(name))
        ]
        if changed:
            raise UsageError(
                f"{self.path} was begun with something else:\n  " + "\n  ".join(changed) + "\nPut back what it was "
                f"begun with to resume it, or start a new run in another --output-dir. Without {path} this "
                "is not checked."
            )

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
        self._check_place()
        retried(lambda: self.path.mkdir(parents=True, exist_ok=True), self.path)
        lock = FileLock(self / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UsageError(f"another process is at work in {self.path}{self._owner()}") from error
        except OSError as error:
            raise write_error(error, self / LOCK) from error
        try:
            remove_leftovers(self.path, ours=True)
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


def _extends(before: Any, now: Any) -> bool:
    """Whether one configuration's training is longer than the other's."""
    lengths = [_duration(values) for values in (before, now)]
    return all(isinstance(length, int) for length in lengths) and lengths[1] > lengths[0]


def _duration(values: Any) -> Any:
    training = values.get("training") if isinstance(values, Mapping) else None
    return training.get("duration") if isinstance(training, Mapping) else None


def _identity(said: str | None) -> str:
    """The last word of what is said of an input: a hash. The words before it are for people and may change."""
    return (said or "").rpartition(" ")[2]
