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
from pathlib import Path
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
_PROCESSES = f"distillkit{os.sep}engine{os.sep}processes.py"
BETWEEN = (*COLLECTIVES, f"{os.sep}torch{os.sep}", f"{os.sep}accelerate{os.sep}", "contextlib.py", _PROCESSES)
"""Files and folders that say nothing of why an operation is waited for: whoever called them does."""
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
    is named on stderr, with its last step and how to go on, and the process ends with exit code 1. Where all have
    waited for so long, each in one collective operation, all are named with what each waits in.

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
        self._place: tuple[int, ...] | None = None
        self._since = 0.0
        self._waits_in = ""

    def run(self) -> None:
        said = 0
        # The store goes with the launcher: without it there is nobody left to tell.
        with suppress(RuntimeError):
            while said == 0 or not self.over.wait(self.every):
                said += 1
                waiting = self._waiting()
                words = {"said": said, "step": self.progress.step, "marks": self.progress.marks, "waited": waiting,
                         **self._own_words()}  # fmt: skip
                self.store.set(f"watch/{self.rank}", json.dumps(words))
                self._hear()
                if waiting > self.timeout and (found := self._stuck() or self._locked()):
                    self._end(found)

    def _own_words(self) -> dict[str, Any]:
        return {"in": self._waits_in, "pid": os.getpid(), "host": socket.gethostname()}

    def _waiting(self) -> float:
        """Seconds for which the process has been in the same collective operation."""
        frame = sys._current_frames().get(self.watched_thread)
        inside = _collective(frame)
        place = None if inside is None else (id(inside), operations(), self.progress.marks)
        if place is None or place != self._place:
            self._place, self._since = place, time.monotonic()
        self._waits_in = "" if inside is None else _described(inside)
        return 0.0 if place is None else time.monotonic() - self._since

    def _hear(self) -> None:
        now = time.monotonic()
        for other, seen in self.others.items():
            if not self.store.check([f"watch/{other}"]):
                continue
            words = json.loads(self.store.get(f"watch/{other}"))
            if words["said"] != seen.words.get("said"):
                seen.heard = now
            if words["waited"] or words["marks"] != seen.words.get("marks"):
                seen.moved = now
            seen.words = words

    def _stuck(self) -> list[str]:
        """What is known of the processes that the others wait for."""
        now, silence = time.monotonic(), max(3 * self.every, self.timeout / 2)
        found = []
        for other, seen in self.others.items():
            silent = now - seen.heard > silence
            if silent or now - seen.moved > self.timeout:
                # All end a step together, so its last is not before this process' own.
                step = max(self.progress.step, int(seen.words.get("step", 0)))
                found.append(
                    f"process {other} of {self.world}{_where(seen.words)} has "
                    f"{'not answered' if silent else 'made no progress'} for {self.timeout:g} s or more (--timeout); "
                    f"its last step was {step:,}."
                )
        return found

    def _locked(self) -> list[str]:
        """What every process waits in, where all have waited too long: for each other, or for what is lost."""
        words = {other: seen.words for other, seen in self.others.items()}
        if not all(one.get("waited", 0.0) > self.timeout for one in words.values()):
            return []
        words[self.rank] = self._own_words()
        places = "; ".join(
            f"process {rank}{_where(one)} waits in {one['in'] or 'no call that is known'}"
            for rank, one in sorted(words.items())
        )
        return [
            f"all {self.world} processes wait for each other, and have for {self.timeout:g} s or more (--timeout): "
            f"{places}. The last step was {self.progress.step:,}. Where they differ, what one process is told to do "
            "depends on something that the others do not share; where they do not, the network between them is at "
            "fault."
        ]

    def _end(self, found: list[str]) -> None:
        if first_to_fail():
            go_on = f" Continue with: {self.progress.go_on}" if self.progress.go_on else ""
            text = f"\ndistillkit: {' '.join(found)} All processes end.{go_on}\n"
            with suppress(OSError):
                os.write(2, text.encode())
            self._let_others_end()
        # The main thread hangs in an operation that nothing ends but the end of the process.
        os._exit(1)

    def _let_others_end(self) -> None:
        """Wait a little for processes that find the same: they ask the store whether it was said, and the store may end
        with this process."""
        until = time.monotonic() + max(ALONE_SECONDS, 2 * self.every)
        with suppress(RuntimeError):
            while self.store.add("failed", 0) < self.world and time.monotonic() < until:
                time.sleep(0.1)


def _where(words: dict[str, Any]) -> str:
    return f" (pid {words['pid']} on {words['host']})" if words else ""


def _collective(frame: FrameType | None) -> FrameType | None:
    while frame is not None and not _waits(frame):
        frame = frame.f_back
    return frame


def _waits(frame: FrameType) -> bool:
    return any(place in frame.f_code.co_filename for place in COLLECTIVES)


def _described(inside: FrameType) -> str:
    """A collective operation and who called it: "barrier, called by save (distillkit/engine/loop.py:240)"."""
    caller: FrameType | None = inside
    while caller is not None and any(place in caller.f_code.co_filename for place in BETWEEN):
        caller = caller.f_back
    name = inside.f_code.co_name
    if caller is None:
        return name
    file = "/".join(Path(caller.f_code.co_filename).parts[-3:])
    return f"{name}, called by {caller.f_code.co_name} ({file}:{caller.f_lineno})"


def operations() -> int:
    """How many collective operations this process has begun, in all groups: one that waits is told from the next one
    of the same kind."""
    count = 0
    groups: list[Any] = [*dist.distributed_c10d._world.pg_map]
    for group in groups:
        with suppress(RuntimeError):  # of a group that has not been used yet, or of a kind that does not count
            count += group._get_sequence_number_for_group()
    return count


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
