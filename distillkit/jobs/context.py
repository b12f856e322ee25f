"""What a job works with: device and processes, progress, signals; and the one way in which jobs are launched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator
from pydantic import BaseModel

from distillkit.contracts.hooks import Tracker
from distillkit.contracts.source import SourceJob
from distillkit.engine.interrupt import StopRequest, stop_on_signal
from distillkit.errors import Interrupted, UsageError
from distillkit.progress import Quiet, Reporter, reporter_for
from distillkit.registry import registry
from distillkit.runs.folder import RunFolder

TRACKERS = ("none", "tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "aim", "clearml", "swanlab")


def make_accelerator(precision: str, device: str, report_to: str, logging_folder: str) -> Accelerator:
    """An Accelerator for "auto", "cpu", "cuda" or "mps"; reads RANK, WORLD_SIZE, LOCAL_RANK where launchers set them.

    Args:
        report_to: a tracker that accelerate knows, a plugin's, or "none".

    Raises:
        UsageError: when the device is not there or does not know the precision.
    """
    there = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device not in there:
        raise UsageError(f"--device {device}: unknown; known: {', '.join(there)}")
    if not there[device]:
        raise UsageError(f"--device {device}: this machine has none that torch can use; try --device cpu")
    cpu = device == "cpu" or (device == "auto" and not (there["cuda"] or there["mps"]))
    if precision == "fp16" and cpu:
        raise UsageError("--precision fp16 needs a GPU; on the CPU use fp32 or bf16")
    if cpu:
        # Spare accelerate's launcher questions: torchrun on a machine without GPU means gloo.
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    return Accelerator(
        cpu=cpu,
        mixed_precision={"fp32": "no"}.get(precision, precision),
        log_with=report_to if report_to in TRACKERS[1:] else None,
        project_dir=logging_folder,
    )


def require_tracker(name: str) -> None:
    """Refuse a tracker that neither accelerate nor a plugin has.

    Raises:
        UsageError: naming those there are.
    """
    known = [*TRACKERS, *registry().named("trackers")]
    if name not in known:
        raise UsageError(f"--report-to {name}: unknown tracker; known: {', '.join(known)}")


def is_first_process() -> bool:
    """Whether this process shows results, by what a launcher sets."""
    return os.environ.get("RANK", "0") == "0"


Made = TypeVar("Made")


@dataclass(frozen=True)
class Context:
    """Device, processes, progress and signals of a job.

    Args:
        report_to: a tracker's name, a tracker, or "none".
    """

    accelerator: Accelerator
    reporter: Reporter
    stop: StopRequest
    report_to: str | Tracker = "none"

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

    def stopped(self) -> int:
        """The number of the signal that has come, else 0."""
        return self.stop.signum or 0

    def interrupted(self, what: str) -> Interrupted:
        """The exception to end with after a signal."""
        return Interrupted(what, self.stop.signum or 2)

    def source_job(self, go_on: str) -> SourceJob:
        """What sources work for; `go_on` is the command that continues after an interruption."""
        return SourceJob(
            device=self.device, rank=self.rank, world=self.world, say=self.reporter.say, task=self.reporter.task,
            should_stop=self.stopped, interrupted=lambda what: self.interrupted(f"{what}. Continue with: {go_on}"),
            barrier=self.accelerator.wait_for_everyone,
        )  # fmt: skip


@contextmanager
def job_context(
    *,
    precision: str = "fp32",
    device: str = "auto",
    report_to: str | Tracker = "none",
    folder: str = ".",
    quiet: bool = False,
) -> Iterator[Context]:
    """A job's context; while it lasts, the first SIGINT or SIGTERM asks the job to stop at a safe place.

    Raises:
        UsageError: for a device, precision or tracker that is not there.
    """
    named = report_to if isinstance(report_to, str) else "none"
    require_tracker(named)
    accelerator = make_accelerator(precision, device, named, folder)
    reporter = reporter_for(quiet=quiet) if accelerator.is_main_process else Quiet()
    with stop_on_signal() as stop:
        yield Context(accelerator, reporter, stop, report_to)


def launch(
    folder: RunFolder, config: BaseModel, context: Context, work: Callable[[], Made], *, resume: bool, remark: str = ""
) -> Made:
    """Lock the folder, begin the run in it or check that it is the same one, and do the work.

    Args:
        remark: said before the work begins.

    Raises:
        UsageError: when the folder is in use, holds something else, or was begun with another configuration.
    """
    with folder.locked(main=context.main):
        if context.main and resume:
            folder.resume(config, context.reporter.say)
        elif context.main:
            folder.begin(config)
        context.accelerator.wait_for_everyone()
        if remark:
            context.reporter.say(remark)
        return work()
