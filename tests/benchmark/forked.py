"""Workers forked from the test's own process: real processes and signals, without the import of torch."""

import os
import signal
import socket
import sys
import time
from contextlib import suppress

import torch._dynamo
import torch.utils.flop_counter  # noqa: F401 - imported once, before the forks
from accelerate.state import AcceleratorState

from distillkit.benchmark.workers import process
from distillkit.benchmark.workers.launchers import how_it_ended
from tests.conftest import HANG


class ForkedWorker:
    """As `LocalWorker`; the command's last two words are the benchmark's folder and the worker's name. Several
    processes find each other as torchrun's do."""

    started = 0

    def __init__(self, command, environment, log):
        ForkedWorker.started += 1
        log.parent.mkdir(parents=True, exist_ok=True)
        count = int(command[command.index("--nproc_per_node") + 1]) if "--nproc_per_node" in command else 1
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        reading, self._pipe = os.pipe()
        os.set_inheritable(self._pipe, False)
        self.pids, self.codes = [], {}
        for rank in map(str, range(count)):
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
            if (pid := os.fork()) == 0:
                self._work(command, {**environment, **(world | address if count > 1 else {})}, log, reading)
            self.pids.append(pid)
        os.close(reading)

    def _work(self, command, environment, log, reading):
        """Never returns."""
        code = 1
        try:
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            os.dup2(reading, 0)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for standard in (1, 2):
                os.dup2(output, standard)
            os.closerange(3, 256)
            for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
                setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
            sys.__stdin__ = sys.stdin
            os.environ.update(environment)
            AcceleratorState._reset_state(reset_partial_state=True)
            code = process.main(*command[-2:])
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
            os._exit(code)

    def ended(self):
        for pid in self.pids:
            if pid not in self.codes and (status := os.waitpid(pid, os.WNOHANG))[0]:
                self.codes[pid] = os.waitstatus_to_exitcode(status[1])
        if len(self.codes) < len(self.pids):
            return None
        self._hang_up()
        return how_it_ended(next((code for code in self.codes.values() if code), 0))

    def waiting(self):
        return False

    def kill(self):
        if self.ended() is None:
            for pid in self.pids:
                if pid not in self.codes:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    self.codes[pid] = -9
        self._hang_up()

    def _hang_up(self):
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


class WaitingWorker:
    """A job that never has its turn; whoever waits for it nevertheless is not left to do so for ever."""

    def __init__(self, command, environment, log):
        self.killed, self.began = False, time.monotonic()

    def ended(self):
        return "was cancelled" if self.killed or time.monotonic() - self.began > HANG else None

    def waiting(self):
        return not self.killed

    def kill(self):
        self.killed = True


def wait_for(condition):
    deadline = time.monotonic() + HANG
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found
