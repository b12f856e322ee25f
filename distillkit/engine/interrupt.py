"""Stopping on a signal: the first is noted and acted on at the next safe place, the second stops at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator

EVERY = 10
"""Steps after which several processes compare notes."""


class StopRequest:
    """Whether a signal has asked the job to stop, and which."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def __bool__(self) -> bool:
        return self.signum is not None


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM instead of dying within a step; the second one ends the process at once.

    Handlers only set a flag, and the former ones are restored. Outside the main thread nothing is installed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(signum: int, frame: FrameType | None) -> None:
        if request:
            # Files are written whole or not at all, so leaving here loses the work since the last checkpoint only.
            os._exit(128 + signum)
        request.signum = signum

    former = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)


def agreed(asked: Callable[[], bool], step: int, accelerator: Accelerator) -> bool:
    """Whether any process was asked to stop. Several processes compare notes every ten steps, all at the same one."""
    if accelerator.num_processes == 1:
        return asked()
    if step % EVERY:
        return False
    votes = torch.tensor(float(asked()), device=accelerator.device)
    return bool(accelerator.reduce(votes, "sum").item())
