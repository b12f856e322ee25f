"""Workers forked from the test's own process: real processes and signals, without the import of torch."""

import os
import signal
import sys
from contextlib import suppress

import torch._dynamo
import torch.utils.flop_counter  # noqa: F401 - imported once, before the forks

from distillkit.benchmark.workers import process
from distillkit.benchmark.workers.launchers import how_it_ended


class ForkedWorker:
    """As `LocalWorker`; the command's last two words are the benchmark's folder and the worker's name."""

    started = 0

    def __init__(self, command, environment, log):
        ForkedWorker.started += 1
        log.parent.mkdir(parents=True, exist_ok=True)
        reading, self._pipe = os.pipe()
        os.set_inheritable(self._pipe, False)
        self.pid, self.code = os.fork(), None
        if self.pid == 0:
            self._work(command, environment, log, reading)
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
        if self.code is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.code = os.waitstatus_to_exitcode(status)
                os.close(self._pipe)
        return None if self.code is None else how_it_ended(self.code)

    def kill(self):
        if self.ended() is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.code = -9
            os.close(self._pipe)
