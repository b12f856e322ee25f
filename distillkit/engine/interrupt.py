"""Stopping on a signal: the first is noted and acted on at the next safe place, the second stops at once."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SAME_SECONDS = 3.0
"""A launcher passes on what the terminal has sent to every process already: signals so close are one there."""


class StopRequest:
    """Whether a signal has asked the job to stop, and which."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def __bool__(self) -> bool:
        return self.signum is not None


@contextmanager
def stop_on_signal(at_once: Callable[[], None] = lambda: None) -> Iterator[StopRequest]:
    """Note SIGINT, SIGTERM and SIGHUP instead of dying within a step; the second one ends the process at once.

    Handlers set a flag and acknowledge it by a line, and the former ones are restored. A SIGHUP that is ignored, as
    under `nohup`, stays ignored. Outside the main thread nothing is installed.

    Args:
        at_once: called before the process ends at once.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    first = 0.0

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal first
        if request:
            if "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - first < SAME_SECONDS:
                return
            at_once()
            # Files are written whole or not at all, so leaving here loses the work since the last checkpoint only.
            os._exit(128 + signum)
        request.signum, first = signum, time.monotonic()
        if signum == getattr(signal, "SIGHUP", None):
            _leave_terminal()
        if os.environ.get("RANK", "0") == "0":
            with suppress(OSError):
                # Not through Python's buffers, which the signal may have interrupted.
                os.write(2, b"\ndistillkit: stopping after this step; again to stop at once\n")

    former = {
        signum: signal.signal(signum, note)
        for signum in SIGNALS
        if signum != getattr(signal, "SIGHUP", None) or signal.getsignal(signum) != signal.SIG_IGN
    }
    try:
        yield request
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)


def _leave_terminal() -> None:
    """Let output go nowhere: writing to a terminal that is gone is an error, and would end the job unsaved."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                os.dup2(nowhere, stream)
        os.close(nowhere)


class Agreement:
    """Whether any process was asked to stop: all compare notes after every step, so that none goes on alone.

    The notes go from CPU to CPU, so no process waits for its device: the kernels of a step may still be running.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.several = accelerator.num_processes > 1
        self.group: Any = None
        if self.several and dist.get_backend() != "gloo":
            self.group = dist.new_group(backend="gloo")

    def __call__(self, asked: Callable[[], bool]) -> bool:
        """Called by all processes, after the same step."""
        if not self.several:
            return asked()
        votes = torch.tensor(float(asked()))
        dist.all_reduce(votes, group=self.group)
        return bool(votes.item())
