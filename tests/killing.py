"""Real kills in the middle of a test's own process tree: a forked child that is killed before its k-th change of a
folder, with nothing cleaned up behind it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate", "shutil.rmtree")


def killed(work: Callable[[], object], folder: Path, at: int) -> int:
    """Do the work in a child that SIGKILL ends before its `at`-th change below the folder; how many came before.

    A child that comes to its end, since there are fewer changes, is an ended work like any other.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _work(work, str(folder), at, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        seen = len(pipe.read())
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if seen >= at else 0), "the child failed"
    return min(seen, at - 1)


def _work(work: Callable[[], object], folder: str, at: int, writing: int) -> None:
    """Never returns: the child must not go on with the tests."""
    code, count = 1, 0

    def before(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        changes = event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES)
        if changes and any(isinstance(a, str | os.PathLike) and os.fspath(a).startswith(folder) for a in arguments):
            count += 1
            os.write(writing, b".")
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(before)
        work()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
