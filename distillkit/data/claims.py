"""Claims on numbered pieces of work in a folder that writers on several machines share: short leases that are renewed
while their writer lives, so that what a killed one has claimed falls to the others."""

from __future__ import annotations

import os
import secrets
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from distillkit.files import MACHINE, at_work, write_error

LEASE = 60.0
"""Seconds after which a claim that was not renewed is nobody's."""


class Claims:
    """Claims of one writer, given back when its context ends. Two writers may come to hold one claim where a machine
    sleeps for longer than a lease: what is claimed must be such that both write the same.

    Ages are measured by the clock of the folder's filesystem, which need not be that of any writer.

    Args:
        folder: of the claims; made if it is not there.
    """

    def __init__(self, folder: Path, lease: float = LEASE) -> None:
        self.folder, self.lease = folder, lease
        self._token = f"{MACHINE}:{os.getpid()}:{secrets.token_hex(4)}"
        self._held: set[Path] = set()
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="claims", daemon=True)

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(error, self.folder) from error
        self._renewing.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._renewing.join()
        for path in list(self._held):
            self._drop(path)
        with suppress(OSError):
            for path in self.folder.glob("[0-9]*"):
                # Of writers that were killed after their work was done.
                if self._is_left(path):
                    path.unlink()
            self.folder.rmdir()

    def take(self, number: int) -> bool:
        """Whether this writer has the piece now; it has it until `give_back`."""
        path = self.folder / f"{number:06d}"
        if not self._create(path):
            if not self._is_left(path):
                return False
            # Of several that find it left, the one whose renaming succeeds takes it.
            aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            with suppress(OSError):
                path.rename(aside)
                aside.unlink()
            if not self._create(path):
                return False
        with self._lock:
            self._held.add(path)
        return True

    def give_back(self, number: int) -> None:
        self._drop(self.folder / f"{number:06d}")

    def _create(self, path: Path) -> bool:
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        except FileNotFoundError:
            # The last of the others has taken the empty folder away.
            self.folder.mkdir(parents=True, exist_ok=True)
            return self._create(path)
        except OSError as error:
            raise write_error(error, path) from error
        with os.fdopen(handle, "w") as file:
            file.write(self._token)
        return True

    def _is_left(self, path: Path) -> bool:
        """Whether a claim's writer has ended or says nothing any more."""
        try:
            age = self._now() - path.stat().st_mtime
            with path.open() as file:
                machine, _, process = file.read(400).partition(":")
        except OSError:
            return False
        number = process.partition(":")[0]
        ended = machine == MACHINE and number.isdecimal() and not at_work(int(number))
        return ended or age > self.lease

    def are_held(self) -> bool:
        """Whether a writer that lives has claimed a piece."""
        return any(not self._is_left(path) for path in self.folder.glob("[0-9]*"))

    def _now(self) -> float:
        probe = self.folder / f".now.{secrets.token_hex(4)}"
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            with suppress(OSError):
                probe.unlink()

    def _renew(self) -> None:
        while not self._ended.wait(self.lease / 4):
            with self._lock:
                held = list(self._held)
            for path in held:
                with suppress(OSError):
                    os.utime(path)

    def _drop(self, path: Path) -> None:
        with self._lock:
            self._held.discard(path)
        with suppress(OSError):
            # One that was taken over in the meantime is another's.
            if path.read_text() == self._token:
                path.unlink()
