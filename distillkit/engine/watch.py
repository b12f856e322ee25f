"""Several processes in one job: which of them is stuck or gone, said once, by the others, within a limit of time."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any

import torch.distributed as dist

COLLECTIVES = tuple(
    os.path.join(*place)  # noqa: PTH118
    for place in (
        ("torch", "distributed", "distributed_c10d.py"),
        ("torch", "distributed", "fsdp", ""),
        ("torch", "distributed", "tensor", ""),
        ("torch", "distributed", "_functional_collectives.py"),
        ("distillkit", "parallel", ""),
    )
)
"""Where a thread is while it waits for other processes: files, and folders of files."""
TRANSPORTS = ("gloo/transport", "NCCL")
"""Named by errors of operations that were waited for elsewhere, such as within a backward pass."""

ALONE_SECONDS = 3.0


@dataclass
class Progress:
    """What a process tells the others of itself.

    Args:
        step: of the training, the last that was ended.
        marks: raised wherever something was done, so that long work is not taken for being stuck.
        go_on: the command that continues the job; empty where there is none.
    """

    step: int = 0
    marks: int = 0
    go_on: str = ""

    def mark(self, step: int | None = None) -> None:
        self.marks += 1
        if step is not None:
            self.step = step


@dataclass
class _Seen:
    """Another process' last words, and when they were new."""

    words: dict[str, Any] = field(default_factory=dict)
    heard: float = 0.0
    moved: float = 0.0


@contextmanager
def watched(progress: Progress, rank: int, world: int, timeout: float) -> Iterator[None]:
    """Look after the other processes while the context lasts. One that has kept this one waiting for `timeout` seconds
    is named on stderr, with its last step and how to go on, and the process ends with exit code 1.

    A thread does it, since the process itself is waiting in a collective operation then. It says and reads a few bytes
    at times; nothing is added to a step.
    """
    store = _store()
    if world == 1 or store is None:
        yield
        return
    watch = _Watch(store, progress, rank, world, timeout)
    watch.start()
    try:
        yield
    finally:
        watch.over.set()


class _Watch(threading.Thread):
    def __init__(self, store: Any, progress: Progress, rank: int, world: int, timeout: float) -> None:
        super().__init__(name="watch", daemon=True)
        self.store, self.progress, self.rank, self.world, self.timeout = store, progress, rank, world, timeout
        self.over, self.every = threading.Event(), min(5.0, max(0.2, timeout / 10))
        self.watched_thread = threading.get_ident()
        self.others = {other: _Seen(heard=time.monotonic(), moved=time.monotonic()) for other in range(world)}
        del self.others[rank]
        self._place: tuple[int, int] | None = None
        self._since = 0.0

    def run(self) -> None:
        said = 0
        # The store goes with the launcher: without it there is nobody left to tell.
        with suppress(RuntimeError):
            while said == 0 or not self.over.wait(self.every):
                said += 1
                waiting = self._waiting()
                words = {"said": said, "step": self.progress.step, "marks": self.progress.marks,
                         "waiting": waiting > 0, "pid": os.getpid(), "host": socket.gethostname()}  # fmt: skip
                self.store.set(f"watch/{self.rank}", json.dumps(words))
                self._hear()
                if waiting > self.timeout and (stuck := self._stuck()):
                    self._end(stuck)

    def _waiting(self) -> float:
        """Seconds for which the process has been in the same collective operation."""
        frame = sys._current_frames().get(self.watched_thread)
        inside = _collective(frame)
        place = None if inside is None else (id(inside), self.progress.marks)
        if place is None or place != self._place:
            self._place, self._since = place, time.monotonic()
        return 0.0 if place is None else time.monotonic() - self._since

    def _hear(self) -> None:
        now = time.monotonic()
        for other, seen in self.others.items():
            if not self.store.check([f"watch/{other}"]):
                continue
            words = json.loads(self.store.get(f"watch/{other}"))
            if words["said"] != seen.words.get("said"):
                seen.heard = now
            if words["waiting"] or words["marks"] != seen.words.get("marks"):
                seen.moved = now
            seen.words = words

    def _stuck(self) -> dict[int, str]:
        """The processes that the others wait for, and what is known of each."""
        now, silence = time.monotonic(), max(3 * self.every, self.timeout / 2)
        found = {}
        for other, seen in self.others.items():
            if now - seen.heard > silence:
                found[other] = "has not answered"
            elif now - seen.moved > self.timeout:
                found[other] = "has made no progress"
        return found

    def _step_of(self, other: int) -> int:
        """The last that it spoke of. All end a step together, so it is not before this process' own."""
        return int(self.others[other].words.get("step", 0))

    def _end(self, stuck: dict[int, str]) -> None:
        if first_to_fail():
            lines = [
                f"process {other} of {self.world}{_where(self.others[other].words)} {what} for {self.timeout:g} s or "
                f"more (--timeout); its last step was {max(self.progress.step, self._step_of(other)):,}."
                for other, what in stuck.items()
            ]
            go_on = f" Continue with: {self.progress.go_on}" if self.progress.go_on else ""
            text = f"\ndistillkit: {' '.join(lines)} All processes end.{go_on}\n"
            with suppress(OSError):
                os.write(2, text.encode())
        # The main thread hangs in an operation that nothing ends but the end of the process.
        os._exit(1)


def _where(words: dict[str, Any]) -> str:
    return f" (pid {words['pid']} on {words['host']})" if words else ""


def _collective(frame: FrameType | None) -> FrameType | None:
    while frame is not None and not _waits(frame):
        frame = frame.f_back
    return frame


def _waits(frame: FrameType) -> bool:
    return any(place in frame.f_code.co_filename for place in COLLECTIVES)


def lost_another(error: BaseException) -> bool:
    """Whether an error is that of a collective operation: another process ended, or the line to it."""
    if isinstance(error, dist.DistError) or any(name in str(error) for name in TRANSPORTS):
        return True
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith(COLLECTIVES[0]):
            return True
        trace = trace.tb_next
    return False


def first_to_fail() -> bool:
    """Whether no other process of the job has failed before: that one says why, for all."""
    store = _store()
    if store is None:
        # Nothing joins the processes yet, so most failures are the same for all. A launcher ends those that linger.
        if os.environ.get("RANK", "0") != "0":
            time.sleep(ALONE_SECONDS)
        return True
    try:
        return bool(store.add("failed", 1) == 1)
    except RuntimeError:
        return True


def _store() -> Any:
    """The key-value store of the process group, which its launcher keeps; None where there is no group."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    return dist.distributed_c10d.PrefixStore("distillkit", dist.distributed_c10d._get_default_store())
