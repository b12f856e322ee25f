"""A worker's look at its bench: it stops when the bench asks for it, and when there is no bench any more."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time

from distillkit.benchmark.workers.messages import ALIVE, FOLDER, Place
from distillkit.engine.interrupt import StopRequest
from distillkit.errors import DistillkitError

LOOK_SECONDS = 0.3
PATIENCE = 60.0
"""Seconds that are left for a safe place once the bench is gone."""


class Watch:
    """Sends this process SIGTERM, as people would, which it answers by stopping at the next safe place.

    A bench on this machine holds the other end of a pipe that is this process' standard input: the system closes it
    when the bench ends, however it ends. Elsewhere the bench writes something new into a file at times.

    Args:
        place: the worker's.
        silence: seconds without a new sign of the bench after which it counts as gone; None where the pipe shows it.
    """

    def __init__(self, place: Place, silence: float | None) -> None:
        self.place, self.silence = place, silence
        self._stop: StopRequest | None = None
        self._over = threading.Event()
        self._sign, self._heard = b"", time.monotonic()

    def __enter__(self) -> Watch:
        threading.Thread(target=self._run, name="bench", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def follow(self, stop: StopRequest) -> None:
        """From here on a signal is noted; before, it ends the process."""
        self._stop = stop

    def _run(self) -> None:
        gone: float | None = None
        asked = False
        while not self._over.wait(LOOK_SECONDS):
            if gone is not None:
                if time.monotonic() - gone > PATIENCE:
                    os._exit(128 + signal.SIGTERM)
            elif _hung_up() or self._silent():
                gone = time.monotonic()
                if asked or self._stop:
                    # It was asked to stop already, and now to stop at once.
                    os._exit(128 + signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
            elif not asked and not self._stop and self._asked_to_stop():
                # Once: a second signal stops at once, and the first may not have been noted yet.
                asked = True
                os.kill(os.getpid(), signal.SIGTERM)

    def _asked_to_stop(self) -> bool:
        """Asked to stop, or the folder is gone: that bench is over, and perhaps there is another one."""
        try:
            return self.place.order().end == "at the next safe place" or not self.place.folder.exists()
        except DistillkitError:
            return False

    def _silent(self) -> bool:
        if self.silence is None:
            return False
        try:
            sign = (self.place.bench / FOLDER / ALIVE).read_bytes()
        except OSError:
            sign = self._sign
        if sign != self._sign:
            self._sign, self._heard = sign, time.monotonic()
        return time.monotonic() - self._heard > self.silence


def _hung_up() -> bool:
    """Whether standard input is a pipe whose other end is closed. Nothing is read, so several processes may look."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    try:
        poll.register(sys.__stdin__.fileno() if sys.__stdin__ else 0, 0)
        return any(event & select.POLLHUP for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False
