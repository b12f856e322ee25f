"""A benchmark whose trainings are done side by side, from the asking to the last result."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from distillkit.benchmark.measures import measure_of
from distillkit.benchmark.published import download
from distillkit.benchmark.suite import Suite
from distillkit.benchmark.workers.cluster import SILENCE, Cluster
from distillkit.benchmark.workers.devices import shares
from distillkit.benchmark.workers.launchers import Launcher, Local
from distillkit.benchmark.workers.messages import Settings
from distillkit.benchmark.workers.supervisor import Supervisor
from distillkit.engine.interrupt import stop_on_signal
from distillkit.errors import UsageError
from distillkit.jobs.context import require_device
from distillkit.jobs.launcher import WORLD
from distillkit.models.store.resolve import resolve
from distillkit.progress import Reporter, reporter_for
from distillkit.registry import plugin_files
from distillkit.runs.folder import RunFolder

LAUNCHERS = ("local", "slurm")
MOST_JOBS, MOST_PROCESSES, MOST_RETRIES = 1_000, 64, 100


@dataclass(frozen=True)
class Workers:
    """How many trainings of a benchmark are done at one time, and where.

    Args:
        jobs: trainings at one time.
        processes_per_job: of each, which share its batch, on one device each.
        launcher: "local": processes of this machine; "slurm": jobs of Slurm.
        slurm: options of every job, as sbatch calls them, such as {"partition": "gpu", "time": "8:00:00"}.
        retries: how often a training whose process died is tried again.

    Raises:
        UsageError: for a number out of bounds, an unknown launcher, or options without Slurm.
    """

    jobs: int = 1
    processes_per_job: int = 1
    launcher: str = "local"
    slurm: Mapping[str, str] = field(default_factory=dict)
    retries: int = 2

    def __post_init__(self) -> None:
        bounds = {"jobs": (1, MOST_JOBS), "processes_per_job": (1, MOST_PROCESSES), "retries": (0, MOST_RETRIES)}
        for name, (least, most) in bounds.items():
            if not least <= (value := getattr(self, name)) <= most:
                raise UsageError(f"--{name.replace('_', '-')} {value}: from {least} to {most:,}")
        if self.launcher not in LAUNCHERS:
            raise UsageError(f"--launcher {self.launcher}: it is one of {', '.join(LAUNCHERS)}")
        if self.slurm and self.launcher != "slurm":
            raise UsageError("--slurm KEY=VALUE goes with --launcher slurm")

    @property
    def this_process(self) -> bool:
        """Whether all is done here, one training after the other."""
        return self.jobs == self.processes_per_job == 1 and self.launcher == "local"


def side_by_side(suite: Suite, folder: Path, workers: Workers, *, device: str, quiet: bool, timeout: float) -> None:
    """Do everything that is not done yet. This process itself uses no device.

    Raises:
        UsageError: for a device that is not there, or a launcher of several processes around this one.
        DistillkitError: when nothing could be compared; a method that fails does not stop the others.
        Interrupted: after SIGINT, SIGTERM or SIGHUP, with everything kept.
    """
    if several := sorted(name for name in WORLD if os.environ.get(name, "1") != "1"):
        raise UsageError(
            f"{several[0]} is set: --jobs and --processes-per-job start processes themselves; give the command without "
            "torchrun or accelerate launch"
        )
    reporter = reporter_for(quiet=quiet)
    cluster = workers.launcher == "slurm"
    launcher = _launcher(folder, workers, device, reporter)
    reference = resolve(suite.teacher, suite.pipeline)
    reference.check()
    if not reference.available:
        # What cannot be measured is not worth a download.
        measure_of(suite, reference.fresh(0))
        if cluster:
            # Machines of a cluster may reach nothing outside it.
            reference.load(reporter)
    if cluster:
        for entry in suite.published.values():
            download(entry)
    with RunFolder(folder, "distillkit bench").locked():
        settings = Settings(
            suite=suite, device=device, timeout=timeout, plugins=plugin_files(), arguments=tuple(sys.argv[1:]),
            silence=SILENCE if cluster else None,
        )  # fmt: skip
        supervisor = Supervisor(
            settings, folder, launcher, most=workers.jobs, retries=workers.retries, reporter=reporter
        )
        with stop_on_signal(supervisor.kill) as stop:
            supervisor.run(stop)


def _launcher(folder: Path, workers: Workers, device: str, reporter: Reporter) -> Launcher:
    processes = workers.processes_per_job
    if workers.launcher == "slurm":
        made = Cluster(folder, workers.slurm, processes, gpus=device in ("auto", "cuda"))
        reporter.say(made.summary)
        return made
    require_device(device)
    each, remarks = shares(workers.jobs, processes, device)
    for remark in remarks:
        reporter.say(remark)
    return Local(each, processes)
