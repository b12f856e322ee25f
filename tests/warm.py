"""Real processes without the seconds in which they import torch: forked from one that has imported everything.

Such a process has a pid, signals, folder, environment, output and exit code of its own, runs the file of the command
itself and ends as Python ends; only the modules are there already. What an interpreter reads before its first import
(a locale, `PYTHONPATH`) needs a fresh one, and so does what a test says of the imports themselves.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

MODULES = (
    "distillkit.cli.closing", "distillkit.cli.option_models", "distillkit.data.pairs", "distillkit.jobs.api",
    "distillkit.embedded.digits.teacher", "distillkit.embedded.rgb32.offers", "distillkit.jobs.train_teacher",
    "distillkit.models.diffusers.unet2d", "distillkit.models.edm.song_unet", "distillkit.parts",
    "distillkit.students.export", "distillkit.testing", "distillkit_dmd", "PIL.PngImagePlugin", "platformdirs",
    "diffusers.models.autoencoders.autoencoder_kl", "diffusers.models.unets.unet_2d_condition", "torch._dynamo",
    "torch.utils.flop_counter", "transformers.models.clip.modeling_clip",
)  # fmt: skip
"""What the processes would import one after the other. The registry of plugins stays unread: each reads its own."""

HEADER = struct.Struct("!Q")


def unsynced(handle: int) -> None:
    """In the place of `os.fsync`: no test cuts the power, and a disk takes milliseconds each time."""
    os.fstat(handle)


class Process:
    """The part of `subprocess.Popen` that the tests use, for a process that has another parent."""

    def __init__(self, arguments: list[str], report: int, stdout: IO[str] | None) -> None:
        self.args, self.stdout, self.returncode = arguments, stdout, None
        self._report = os.fdopen(report, "rb", buffering=0)
        self.pid: int = self._reported()

    def _reported(self) -> int:
        """The next number of its keeper: the pid, then the exit code."""
        read = self._report.read(HEADER.size)
        assert read is not None and len(read) == HEADER.size, "the process that starts the others is gone"
        return HEADER.unpack(read)[0] - 256

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._report], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._report], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = self._reported()
            self._report.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Warm:
    """The process that forks the others. Arguments are as `subprocess` takes them: a script's file, or this Python
    with a file, `-m MODULE` or `-c CODE`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        ours, its = socket.socketpair()
        with its:
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(its.fileno())], pass_fds=[its.fileno()], env=environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        self._socket = ours

    def start(
        self, arguments: list[str], cwd: Path, env: Mapping[str, str], out: int | None = None, err: int | None = None
    ) -> Process:
        """Start a process; without `out`, its output and its errors are read from `stdout`."""
        reading, writing = os.pipe()
        mine: IO[str] | None = None
        opened = [writing]
        if out is None or err is None:
            read_end, out = os.pipe()
            err = out
            opened.append(out)
            mine = os.fdopen(read_end, encoding="utf-8", errors="replace")
        request = json.dumps({"arguments": arguments, "cwd": str(cwd), "env": dict(env)}).encode()
        socket.send_fds(self._socket, [HEADER.pack(len(request))], [writing, out, err])
        self._socket.sendall(request)
        for handle in opened:
            os.close(handle)
        return Process(arguments, reading, mine)

    def run(
        self, arguments: list[str], cwd: Path, env: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` with captured text. Raises subprocess.TimeoutExpired, with the process killed."""
        return self.run_together(arguments, cwd, [env], timeout)[0]

    def run_together(
        self, arguments: list[str], cwd: Path, environments: Sequence[Mapping[str, str]], timeout: float
    ) -> list[subprocess.CompletedProcess[str]]:
        """One process for each environment, at the same time; none outlives the call."""
        with contextlib.ExitStack() as stack:
            files = [[stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)] for _ in environments]
            processes = []
            for env, (out, err) in zip(environments, files, strict=True):
                processes.append(self.start(arguments, cwd, env, out.fileno(), err.fileno()))
                stack.callback(processes[-1].kill)
            codes = [process.wait(timeout) for process in processes]
            return [
                subprocess.CompletedProcess(arguments, code, *map(_text, pair))
                for code, pair in zip(codes, files, strict=True)
            ]

    def close(self) -> None:
        self._socket.close()
        self._server.wait()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def serve(requests: socket.socket) -> dict[str, Any]:
    """Fork a process for each request; returns in such a process alone, with what it is to do."""
    # On macOS a process that has started threads of its frameworks must not be forked.
    for name in MODULES if sys.platform != "darwin" else ():
        importlib.import_module(name)
    os.fsync = unsynced
    gc.collect()
    gc.freeze()
    while True:
        header, handles, _, _ = socket.recv_fds(requests, HEADER.size, 3)
        if not header:  # nobody asks any more
            break
        request = json.loads(_exactly(requests, HEADER.unpack(header)[0]))
        if os.fork() == 0:
            requests.close()
            _keep(*handles)
            return request
        for handle in handles:
            os.close(handle)
        _reap(os.WNOHANG)
    _reap(0)
    os._exit(0)


def _reap(how: int) -> None:
    """Collect what has ended, or wait for all."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, how)[0]:
            pass


def _exactly(requests: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        parts += requests.recv(size - len(parts))
    return parts


def _keep(report: int, out: int, err: int) -> None:
    """Fork once more: the parent reports pid and exit code, the child returns with its output in place."""
    if child := os.fork():
        os.close(out)
        os.close(err)
        os.write(report, HEADER.pack(child + 256))
        _, status = os.waitpid(child, 0)
        os.write(report, HEADER.pack(os.waitstatus_to_exitcode(status) + 256))
        os._exit(0)
    os.close(report)
    for handle, standard in ((out, 1), (err, 2)):
        os.dup2(handle, standard)
        os.close(handle)
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115


def work(arguments: list[str], cwd: str, env: dict[str, str]) -> None:
    """Be the program that the arguments name."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if Path(arguments[0]) == Path(sys.executable):
        arguments = arguments[1:]
    kind = arguments[0]
    named = kind in ("-m", "-c")
    sys.argv = arguments[1:] if named else arguments
    sys.path.insert(0, "" if named else str(Path(kind).resolve().parent))
    if kind == "-m":
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv[0] = "-c"
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(kind, run_name="__main__")


def leave(code: object) -> NoReturn:
    """End as an interpreter does, without taking the modules apart: that would copy all memory that is shared."""
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):  # closed
            stream.flush()
    os._exit(code & 0xFF if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # instead of this file's folder: programs of tests import from tests
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    ended: object = None
    try:
        work(**request)
    except SystemExit as end:
        ended = end.code
    except BaseException:
        traceback.print_exc()
        ended = 1
    leave(ended)
