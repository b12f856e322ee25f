"""Locks that keep processes from making the same thing at the same time; the system frees those of a dead process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOOK_SECONDS = 0.5


@contextmanager
def held(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock while the context lasts. Where a file cannot be locked, as in a folder that is only read or on a file
    system without locks, the context is entered without: what it protects is then made twice, never torn.

    Args:
        path: of the lock's file, which is made.
        waiting: called at once where another process has the lock, and twice a second until it is free; what it raises
            ends the waiting.
    """
    lock = _taken(path)
    while lock is None:
        waiting()
        lock = _taken(path, LOOK_SECONDS)
    try:
        yield
    finally:
        lock.release()


def _taken(path: Path, seconds: float = 0.0) -> FileLock | None:
    """The lock, held unless files cannot be locked there; None where another process has it."""
    # Not a singleton: two parts of one process exclude each other as two processes do.
    lock = FileLock(path)
    with suppress(OSError, NotImplementedError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            return None
    return lock
