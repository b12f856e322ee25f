"""Locks that keep processes from making the same thing at the same time; the system frees those of a dead process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from distillkit.errors import Interrupted

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


@contextmanager
def held_if_free(path: Path) -> Iterator[bool]:
    """Hold a lock while the context lasts, unless another process has it; says whether it is held. Where files cannot
    be locked it is taken as free.

    Args:
        path: of the lock's file; where there is none nobody has it, and none is made.
    """
    if not path.exists():
        yield True
        return
    lock = _taken(path)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


def waiting(say: Callable[[str], None], what: str, stop: Callable[[], int] = lambda: 0) -> Callable[[], None]:
    """For `held`: says once what is waited for, and ends the waiting after a signal.

    Args:
        what: another process does, such as "measuring the same".
        stop: the signal that came, or 0.

    Raises:
        Interrupted: from what is returned, after a signal.
    """
    said = False

    def look() -> None:
        nonlocal said
        if not said:
            say(f"another process is {what}; waiting for it")
        said = True
        if signum := stop():
            raise Interrupted("stopped while waiting for another process", signum)

    return look


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
