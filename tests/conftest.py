"""What the tests share: goldens, a tiny teacher, and the command line, in processes and in this one."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distillkit import Teacher
from distillkit import registry as registries
from distillkit.diffusion import EDMSchedule
from distillkit.engine.interrupt import SIGNALS
from distillkit.models.build import build_denoiser
from distillkit.models.edm.families import described
from distillkit.models.store.folder import fresh_teacher, write_teacher
from distillkit.models.store.resolve import load_teacher, resolve
from tests.order import longest_first
from tests.warm import Process, Warm, unsynced

GOLDENS = Path(__file__).parent / "goldens"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Whoever names files for one process gets them in the order in which they were named."""
    if hasattr(config, "workerinput"):
        longest_first(items)


def pytest_collection_finish() -> None:
    """What has been imported stays, so the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test and no fixture reads or writes the user's cache; the worker's tests share one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILLKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Files need not survive a power cut here; fresh interpreters wait for the disk as users' do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", unsynced)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_signal_is_ignored() -> None:
    """What the surroundings ignore when they start the tests (a shell: SIGINT of what runs in its background), every
    process of the tests would ignore too, but for those that handle it themselves."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def global_state() -> tuple[Any, ...]:
    """What Python and torch keep for the whole process and a context may leave changed behind."""
    return (
        *map(signal.getsignal, SIGNALS),
        torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled(),
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(),
        torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack(),
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _no_state_left_behind() -> Iterator[None]:
    """Half precision that stays on after a test would change what every later one computes, and a signal that stays
    ignored is ignored by every process that a later one starts."""
    before = global_state()
    yield
    assert global_state() == before, "the test left the state of the process changed"


@pytest.fixture(autouse=True)
def _no_plugin_files_left_behind() -> Iterator[None]:
    """A file that a test took as a plugin is none to the tests after it."""
    before = list(registries._FILES)
    yield
    if before != registries._FILES:
        registries._FILES[:] = before
        registries.registry.cache_clear()


@dataclass(frozen=True)
class Golden:
    """Tensors and description computed by a reference implementation."""

    tensors: dict[str, Tensor]
    description: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    def read(name: str) -> Golden:
        return Golden(load_file(GOLDENS / f"{name}.safetensors"), json.loads((GOLDENS / f"{name}.json").read_text()))

    return read


def denoiser_of(constructor: dict[str, Any]) -> Any:
    """The EDM-preconditioned network that a golden's constructor arguments describe."""
    arguments = dict(constructor)
    channels, sigma_data = arguments.pop("img_channels"), arguments.pop("sigma_data")
    kind = arguments.pop("model_type")
    inner = {**arguments, "in_channels": channels, "out_channels": channels}
    return build_denoiser(described(kind, inner, sigma_data, EDMSchedule())).eval()


TINY_NETWORK = described(
    "DhariwalUNet",
    {
        "img_resolution": 8, "in_channels": 1, "out_channels": 1, "label_dim": 10, "model_channels": 8,
        "channel_mult": [1], "channel_mult_emb": 2, "num_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    },
    0.5,
    EDMSchedule(),
)  # fmt: skip


@pytest.fixture(scope="session")
def tiny_teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of digits' shape with 8 channels and random weights: the engine's behaviour in milliseconds."""
    digits = resolve("digits").spec
    assert digits is not None
    spec = digits.model_copy(update={"network": TINY_NETWORK, "solver_steps": 4, "name": "tiny"})
    teacher = fresh_teacher(spec, 0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in teacher.denoiser.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    folder = tmp_path_factory.mktemp("teacher") / "tiny"
    write_teacher(folder, teacher.denoiser.state_dict(), spec)
    return folder


@pytest.fixture
def tiny_teacher(tiny_teacher_folder: Path) -> Teacher:
    return load_teacher(str(tiny_teacher_folder))


Run = Callable[..., "subprocess.CompletedProcess[str]"]

HANG = 1200.0
"""Seconds after which a process that should have ended counts as hung, on a machine loaded many times over."""


READ_FIRST = ("HF_", "HOME", "LANG", "LC_", "OMP_", "PYTHON", "TORCH", "XDG_")
"""What variables begin with that an interpreter or a library reads once, as it starts."""


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Starts processes that have imported torch already."""
    if os.name != "posix":
        pytest.skip("forks processes")
    server = Warm(environment())
    yield server
    server.close()


@pytest.fixture
def cli(tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    """Run the real entry point in a process of its own, in an empty folder: a fresh interpreter where one is asked for
    or is given variables that only a fresh one reads, else a warm one."""

    def run(
        *arguments: str | Path, env: dict[str, str] | None = None, timeout: float = HANG, fresh: bool = False
    ) -> subprocess.CompletedProcess[str]:
        if fresh or any(name.startswith(READ_FIRST) for name in env or ()):
            return subprocess.run(
                command(*arguments), cwd=tmp_path, env=environment(env), timeout=timeout, check=False,
                capture_output=True, text=True,
            )  # fmt: skip
        return request.getfixturevalue("warm").run(command(*arguments), tmp_path, environment(env), timeout)

    return run


@pytest.fixture
def together(tmp_path: Path, warm: Warm) -> Callable[..., list[subprocess.CompletedProcess[str]]]:
    """Run a program in warm processes that find each other as those of torchrun do, in an empty folder."""

    def run(*arguments: str | Path, processes: int = 2) -> list[subprocess.CompletedProcess[str]]:
        group = group_of(processes)
        return warm.run_together([*map(str, arguments)], tmp_path, [environment(one) for one in group], HANG)

    return run


def group_of(processes: int) -> list[dict[str, str]]:
    """The variables by which each process of a group finds the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


@pytest.fixture
def inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the entry point's function in this process, in an empty folder."""
    from distillkit.cli import main

    # A plan measures the speed for seconds, for a figure that no test looks at.
    monkeypatch.setattr("distillkit.jobs.trial.ENOUGH_SECONDS", 0.0)

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["distillkit", *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            # An interrupted command ignores further signals while its process ends; this process goes on.
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess([*map(str, arguments)], int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def start(tmp_path: Path, warm: Warm) -> Iterator[Callable[..., Process]]:
    """Start the real entry point in a warm process and leave it running; killed at the end of the test."""
    started: list[Process] = []

    def begin(*arguments: str | Path, env: dict[str, str] | None = None) -> Process:
        started.append(warm.start(command(*arguments), tmp_path, environment(env)))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def command(*arguments: str | Path) -> list[str]:
    return [str(Path(sys.executable).parent / "distillkit"), *map(str, arguments)]


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", **(extra or {})}


@pytest.fixture
def small_run(tiny_teacher_folder: Path) -> list[str]:
    """Arguments of a run that takes about a second."""
    return [
        "run", "dmd", "--teacher", str(tiny_teacher_folder), "--distance", "l2", "--duration", "320", "--batch", "16",
        "--pairs-count", "64", "--log-every", "32", "--checkpoint-every", "64", "--sample-every", "160",
        "--evaluate-every", "160", "--evaluation-samples", "60", "--evaluate-samples", "60", "--lr", "1e-3",
    ]  # fmt: skip
