"""Where workers run: processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from distillkit.benchmark.workers.devices import Share
from distillkit.benchmark.workers.messages import Place

SIGNALS = {number.value: number.name for number in signal.Signals}


class Started(Protocol):
    """A worker that was started."""

    def ended(self) -> str | None:
        """Why it is not there any more; None while it is, or waits for its turn."""

    def waiting(self) -> bool:
        """Whether it waits for its turn, and does nothing yet."""

    def kill(self) -> None:
        """End it at once."""


class Launcher(Protocol):
    """Starts workers."""

    def share(self, number: int) -> str:
        """What worker `number` gets, for people."""

    def start(self, place: Place) -> Started: ...


def worker_command(place: Place, processes: int) -> list[str]:
    """Of a worker of so many processes."""
    module = ["-m", "distillkit.benchmark.workers.process", str(place.bench), place.name]
    if processes == 1:
        return [sys.executable, *module]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *launcher, *module]


class Local:
    """Processes of this machine, each with its share of the devices.

    Args:
        shares: one for each worker.
        processes: of each.
    """

    def __init__(self, shares: Sequence[Share], processes: int) -> None:
        self.shares, self.processes = shares, processes

    def share(self, number: int) -> str:
        return self.shares[number - 1].name

    def start(self, place: Place) -> LocalWorker:
        environment = {**os.environ, **self.shares[place.number - 1].environment}
        return LocalWorker(worker_command(place, self.processes), environment, place.log)


class LocalWorker:
    """A worker's process, in a session of its own: the terminal's Ctrl-C is the bench's to act upon.

    It, and what it starts, has a pipe as its standard input, whose closed end says that the bench is gone.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
            )

    def ended(self) -> str | None:
        code = self.process.poll()
        if code is None:
            return None
        self._hang_up()
        return how_it_ended(code)

    def waiting(self) -> bool:
        return False

    def kill(self) -> None:
        if self.process.poll() is None:
            # Its own processes are those of its session, or look at the pipe.
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self._hang_up()

    def _hang_up(self) -> None:
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()


def how_it_ended(code: int) -> str:
    """An exit code for people."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = SIGNALS.get(-code, f"signal {-code}")
    return f"was ended by {name}" + (", perhaps by the system for want of memory" if name == "SIGKILL" else "")
