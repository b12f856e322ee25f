"""What a job works with: device and processes, progress, signals; and the one way in which jobs are launched."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from pydantic import BaseModel

from distillkit.contracts.hooks import Tracker
from distillkit.contracts.source import SourceJob
from distillkit.engine.interrupt import StopRequest, stop_on_signal
from distillkit.engine.processes import Processes
from distillkit.engine.trackers import TrackedRun, Trackers, project_of, require_tracker
from distillkit.engine.watch import Progress, lost_another, watched
from distillkit.errors import DistillkitError, Interrupted, UsageError
from distillkit.files import WriteError, io_error
from distillkit.jobs.alike import require_same_inputs, require_same_versions
from distillkit.jobs.launcher import contradiction, launcher_settings, own_environment
from distillkit.progress import Quiet, Reporter, reporter_for
from distillkit.runs.folder import RunFolder

DEVICES = ("auto", "cpu", "cuda", "mps")
TIMEOUT = 600.0
"""Seconds for which one process may keep the others waiting."""
MOST_TIMEOUT = 7 * 86_400.0


def require_device(device: str) -> None:
    """Refuse a device that is none, or that this machine does not have.

    Raises:
        UsageError: naming those that are possible here.
    """
    there = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if there.get(device):
        return
    here = f"possible on this machine: {', '.join(name for name in DEVICES if there[name])}"
    if device in there:
        raise UsageError(f"--device {device}: this machine has none that torch can use; {here}")
    kind, _, number = device.partition(":")
    hint = ""
    if kind in ("cuda", "gpu") and number:
        hint = f"; one of several GPUs is chosen by CUDA_VISIBLE_DEVICES={number} and --device cuda"
    elif kind in ("gpu", "nvidia", "rocm"):
        hint = "; a GPU is called cuda"
    raise UsageError(f"--device {device}: unknown; {here}{hint}")


def make_accelerator(precision: str, device: str, timeout: float = TIMEOUT) -> Accelerator:
    """An Accelerator for "auto", "cpu", "cuda" or "mps"; reads RANK, WORLD_SIZE, LOCAL_RANK where launchers set them.

    Raises:
        UsageError: when the device is not there, does not know the precision, or the launcher asks for something else.
    """
    require_device(device)
    launcher = launcher_settings()
    device = launcher.for_device(device)
    require_device(device)
    cpu = device == "cpu" or (device == "auto" and not (torch.cuda.is_available() or torch.backends.mps.is_available()))
    if precision == "fp16" and cpu:
        raise UsageError("--precision fp16 needs a GPU; on the CPU use fp32 or bf16")
    mixed = {"fp32": "no"}.get(precision, precision)
    _forget_other(mixed, cpu=cpu)
    with own_environment(cpu=cpu):
        return Accelerator(
            cpu=cpu, mixed_precision=mixed,
            # Later than our own limit, which says which process it is.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=2 * timeout + 60))],
        )  # fmt: skip


def _forget_other(mixed_precision: str, *, cpu: bool) -> None:
    """Let a notebook's next job have another device or precision: accelerate keeps one of each for a process."""
    state = AcceleratorState
    if not state._shared_state or torch.distributed.is_initialized():
        return
    if state().mixed_precision != mixed_precision or (state().device.type == "cpu") != cpu:
        state._reset_state(reset_partial_state=True)


def is_first_process() -> bool:
    """Whether this process shows results, by what a launcher sets."""
    return os.environ.get("RANK", "0") == "0"


Made = TypeVar("Made")


@dataclass(frozen=True)
class Context:
    """Device, processes, progress and signals of a job.

    Args:
        report_to: a tracker's name, a tracker, or "none".
        progress: what the job's other processes hear of this one.
        project: of the tracker.
        processes: of the job, for short messages.
    """

    accelerator: Accelerator
    reporter: Reporter
    stop: StopRequest
    report_to: str | Tracker = "none"
    progress: Progress = field(default_factory=Progress)
    project: str | None = None
    processes: Processes = field(default_factory=Processes)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def main(self) -> bool:
        """Whether this is the first process, which alone writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def rank(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        return int(self.accelerator.num_processes)

    def agreed(self, folder: RunFolder) -> RunFolder:
        """The first process' folder: a name by the time may be another on each."""
        return RunFolder(Path(self.processes.first(str(folder.path))), folder.command)

    def trackers(self, folder: RunFolder, config: Mapping[str, Any], *, resumed: bool) -> Trackers:
        """The tracker of the run in `folder`."""
        named = self.report_to if isinstance(self.report_to, str) else ""
        run = TrackedRun(folder.path.resolve().name, project_of(named, self.project), config, folder.path, resumed)
        return Trackers(self.report_to, run, self.accelerator)

    def stopped(self) -> int:
        """The number of the signal that has come, else 0. Long work asks at times, which shows that it goes on."""
        self.progress.mark()
        return self.stop.signum or 0

    def interrupted(self, what: str) -> Interrupted:
        """The exception to end with after a signal."""
        return Interrupted(what, self.stop.signum or 2)

    def stop_if_asked(self, where: str) -> None:
        """End here after a signal.

        Raises:
            Interrupted: saying where.
        """
        if self.stop:
            raise self.interrupted(f"stopped {where}")

    def source_job(self, folder: Path) -> SourceJob:
        """What sources work for; `folder` is the run's."""
        return SourceJob(
            device=self.device, rank=self.rank, world=self.world, say=self.reporter.say, task=self.reporter.task,
            should_stop=self.stopped, interrupted=self.interrupted, barrier=self.accelerator.wait_for_everyone,
            folder=folder,
        )  # fmt: skip


@contextmanager
def job_context(
    *,
    precision: str = "fp32",
    device: str = "auto",
    report_to: str | Tracker = "none",
    tracker_project: str | None = None,
    quiet: bool = False,
    timeout: float = TIMEOUT,
    settled: Collection[str] = (),
    remarks: Sequence[str] = (),
) -> Iterator[Context]:
    """A job's context; while it lasts, the first SIGINT, SIGTERM or SIGHUP asks the job to stop at a safe place.

    Args:
        timeout: seconds for which one of several processes may keep the others waiting.
        settled: the launcher's settings that the job has taken over, by their names.
        remarks: said before anything else.

    Raises:
        UsageError: for a device, precision or tracker that is not there, or a launcher that asks for something else.
        DistillkitError: where another process of the job has ended.
        UsageError: where processes have other versions of programs.
    """
    if not 1 <= timeout <= MOST_TIMEOUT:
        raise UsageError(f"--timeout {timeout:g}: from 1 second to {MOST_TIMEOUT:,.0f}")
    require_tracker(report_to if isinstance(report_to, str) else "none")
    launcher = launcher_settings()
    if "precision" in settled and launcher.precision not in (None, precision):
        raise UsageError(contradiction(f"--precision {precision}", launcher.asked["precision"]))
    accelerator = make_accelerator(precision, device, timeout)
    reporter = reporter_for(quiet=quiet) if accelerator.is_main_process else Quiet()
    for line in (*remarks, *launcher.unused(settled)):
        reporter.say(line)
    with stop_on_signal() as stop:
        context = Context(accelerator, reporter, stop, report_to, project=tracker_project)
        with watched(context.progress, context.rank, context.world, timeout), _others_ending(context):
            require_same_versions(context.processes)
            yield context


@contextmanager
def _others_ending(context: Context) -> Iterator[None]:
    """A collective operation that fails because another process has ended, as a message."""
    try:
        yield
    except (RuntimeError, DistillkitError) as error:
        # A pass through a network in parts is a collective operation too, and whoever made it is blamed for its end.
        if context.world == 1 or not any(lost_another(cause) for cause in causes_of(error)):
            raise
        go_on = f" Continue with: {context.progress.go_on}" if context.progress.go_on else ""
        if context.stop:
            raise context.interrupted(f"stopped.{go_on}") from error
        raise DistillkitError(
            f"another process of this job has ended, perhaps killed by the system, after step "
            f"{context.progress.step:,}; so this one ends too.{go_on}"
        ) from error


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """The error, if it is no message of ours, and what it was raised from."""
    cause: BaseException | None = error
    while cause is not None:
        if not isinstance(cause, DistillkitError):
            yield cause
        cause = cause.__cause__


def check_launch(folder: RunFolder, config: BaseModel, *, resume: bool) -> None:
    """What `launch` would refuse, for plans; nothing is written.

    Raises:
        UsageError: as `launch`, but for a folder in use.
    """
    if resume:
        folder.check_same(config)
    else:
        folder.check_empty()


@contextmanager
def entered(
    folder: RunFolder, config: BaseModel, context: Context, *, resume: bool,
    inputs: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[None]:  # fmt: skip
    """Hold a run's folder, begun or found to be the same run.

    Args:
        inputs: what the run reads beside its configuration, by what it is; the same is due on resuming.

    Raises:
        UsageError: when the folder is in use, holds something else, or was begun with another configuration or inputs;
            or when processes were given other ones.
    """
    require_same_inputs(context.processes, {**inputs, **_flat(config.model_dump(mode="json"))})
    with folder.locked(main=context.main):
        context.progress.go_on = folder.resume_command
        if context.main and resume:
            folder.resume(config, context.reporter.say, inputs)
        elif context.main:
            folder.begin(config, inputs)
        context.accelerator.wait_for_everyone()
        yield


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """{"training.lr": "0.001"} of nested values."""
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": str(value)}
    return found


def launch(
    folder: RunFolder,
    config: BaseModel,
    context: Context,
    work: Callable[[], Made],
    *,
    resume: bool,
    remark: str = "",
    inputs: Mapping[str, str] = MappingProxyType({}),
) -> Made:
    """Lock the folder, begin the run in it or check that it is the same one, and do the work.

    Args:
        remark: said before the work begins.
        inputs: as `entered` takes them.

    Raises:
        UsageError: as `entered`.
        Interrupted, WriteError: from the work, with the command that continues.
    """
    with entered(folder, config, context, resume=resume, inputs=inputs):
        if remark:
            context.reporter.say(remark)
        with _resumable(folder):
            return work()


@contextmanager
def _resumable(folder: RunFolder) -> Iterator[None]:
    """What ends a job that can be resumed says how."""
    go_on = f"ontinue with: {folder.resume_command}"
    try:
        yield
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}. C{go_on}", stopped.exit_code - 128) from stopped
    except WriteError as error:
        raise WriteError(f"{error} Then c{go_on}", read_only=error.read_only) from error
    except BrokenPipeError:
        # Whoever read the output is gone; there is nobody to tell.
        raise
    except OSError as error:
        where = Path(error.filename) if isinstance(error.filename, str) else folder.path
        raise WriteError(f"{io_error(error, where)} Then c{go_on}") from error
