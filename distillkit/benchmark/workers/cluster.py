"""Workers as jobs of Slurm, through submitit (`pip install "distillkit[slurm]"`).

submitit keeps what it starts as pickles below the benchmark's folder, written and read by this user's own jobs; nothing
that a worker answers is read from them.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from distillkit.benchmark.workers.launchers import how_it_ended, worker_command
from distillkit.benchmark.workers.messages import LOGS, Place
from distillkit.errors import DistillkitError, UsageError

MINUTES = 480
"""Of a job, where nothing else is asked for: the next one goes on where it was."""
MOST_TIMES = 1_000
"""How often a job may come to its time limit and go on."""
SILENCE = 600.0
"""Seconds without a sign of the bench after which a worker stops."""
PATIENCE = 60.0
"""Seconds for a worker to stop in, before its job ends."""

CLUSTERS = ("slurm", "local")
COUNTS = {"gpus_per_node", "cpus_per_task", "mem_gb"}
"""What submitit takes for every cluster, beside the time."""
OURS = {"nodes", "tasks_per_node", "ntasks", "ntasks_per_node", "array", "job_name", "name", "output", "error"}
"""What the bench decides."""


class Cluster:
    """Jobs of a cluster.

    Args:
        folder: of the benchmark.
        options: `--slurm key=value`: `time`, `gpus`, `partition`, `account`, `qos` and whatever else sbatch takes;
            `cluster=local` runs the same jobs as processes of this machine, to try it.
        processes: of each worker, on one node.
        gpus: whether each process needs one.

    Raises:
        UsageError: when submitit is not installed, there is no Slurm here, or an option has no sense.
    """

    def __init__(self, folder: Path, options: Mapping[str, str], processes: int, *, gpus: bool) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UsageError('--launcher slurm needs submitit: pip install "distillkit[slurm]"') from error
        asked = dict(options)
        name = asked.pop("cluster", "slurm")
        if name not in CLUSTERS:
            raise UsageError(f"--slurm cluster={name}: it is one of {', '.join(CLUSTERS)}")
        known = submitit.SlurmExecutor._valid_parameters()
        parameters = job_parameters(asked, processes if gpus else 0, known)
        place = folder / LOGS / "slurm"
        try:
            self._executor = submitit.AutoExecutor(
                place, cluster=name, slurm_max_num_timeout=MOST_TIMES, local_max_num_timeout=MOST_TIMES
            )
            self._executor.update_parameters(**parameters)
        except (RuntimeError, NameError, ValueError, AssertionError) as error:
            raise UsageError(f"--launcher slurm: {error}") from error
        self.name, self.processes, self.parameters = name, processes, parameters

    @property
    def summary(self) -> str:
        """What each job asks for."""
        shown = {**self.parameters, **self.parameters.get("slurm_additional_parameters", {})}
        asked = ", ".join(
            f"{key.removeprefix('slurm_')} {value}" for key, value in shown.items() if not isinstance(value, dict)
        )
        return f"jobs of {self.name}: {asked}; what comes to its time limit goes on in another"

    def share(self, number: int) -> str:
        return f"worker {number} of {self.name}"

    def start(self, place: Place) -> ClusterWorker:
        """Submit a worker.

        Raises:
            DistillkitError: when the cluster refuses it.
        """
        try:
            job = self._executor.submit(Incarnation(worker_command(place, self.processes), str(Path.cwd())))
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            raise DistillkitError(f"{self.name} refuses the job: {error}") from error
        return ClusterWorker(job)


class ClusterWorker:
    """A worker that was submitted, waiting or at work."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def ended(self) -> str | None:
        if not self.job.done():
            return None
        return f"ended as job {self.job.job_id} ({self.job.state}; output in {self.job.paths.stderr})"

    def waiting(self) -> bool:
        with suppress(OSError, subprocess.SubprocessError):
            # Asked anew: what was said a minute ago may be at work now.
            return str(self.job.get_info(mode="force").get("State", "")) == "PENDING"
        return False

    def kill(self) -> None:
        if not self.job.done():
            with suppress(OSError, subprocess.SubprocessError):
                self.job.cancel(check=False)


class Incarnation:
    """What a job of the cluster runs: a worker, until it ends or the job comes to its limit of time.

    submitit calls it in the job, and calls `checkpoint` before the limit or a preemption: the worker then stops at a
    safe place, and the job is queued again with what `checkpoint` returns.
    """

    def __init__(self, command: Sequence[str], folder: str) -> None:
        self.command, self.folder = list(command), folder

    def __call__(self) -> None:
        self._process = subprocess.Popen(self.command, cwd=self.folder, stdin=subprocess.PIPE)
        try:
            # Not `wait`, which holds a lock in which a signal's handler could not wait once more.
            while not _is_over(self._process.pid):
                time.sleep(0.2)
        finally:
            assert self._process.stdin is not None
            self._process.stdin.close()
        if code := self._process.wait(PATIENCE):
            raise RuntimeError(f"the worker {how_it_ended(code)}")

    def checkpoint(self) -> Any:
        """Stop the worker; another job goes on where it was."""
        import submitit

        self._process.send_signal(signal.SIGTERM)
        while not _is_over(self._process.pid):
            time.sleep(0.2)
        return submitit.helpers.DelayedSubmission(Incarnation(self.command, self.folder))


def _is_over(process: int) -> bool:
    """Whether a child has ended; it is left to be waited for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def job_parameters(asked: Mapping[str, str], gpus: int, known: set[str]) -> dict[str, Any]:
    """What submitit asks for, for every job.

    Args:
        asked: options by name, as sbatch calls them.
        gpus: that a job needs.
        known: options of Slurm that submitit has a name for; others are handed to sbatch as they are.

    Raises:
        UsageError: for an option that the bench decides, or a value that is none.
    """
    parameters: dict[str, Any] = {"timeout_min": MINUTES, "name": "distillkit-bench"}
    if gpus:
        parameters["gpus_per_node"] = gpus
    further: dict[str, str] = {}
    for option, value in asked.items():
        name = {"gpus": "gpus_per_node", "timeout_min": "time"}.get(plain := option.strip("-").replace("-", "_"), plain)
        if name in OURS:
            raise UsageError(f"--slurm {option}={value}: a job is one task on one node, which the bench says itself")
        if name == "time":
            parameters["timeout_min"] = minutes(value)
        elif name in COUNTS:
            parameters[name] = _count(option, value)
        elif name in known:
            parameters[f"slurm_{name}"] = int(value) if value.isdecimal() else value
        else:
            further[name.replace("_", "-")] = value
    if gpus and parameters["gpus_per_node"] < gpus:
        raise UsageError(f"--slurm gpus={parameters['gpus_per_node']}: a job of {gpus} processes needs {gpus}")
    return parameters | ({"slurm_additional_parameters": further} if further else {})


def minutes(time: str) -> int:
    """Slurm's spelling of a time limit: minutes, minutes:seconds, hours:minutes:seconds, days-hours and so on.

    Raises:
        UsageError: for anything else.
    """
    found = re.fullmatch(r"(?:(\d{1,4})-)?(\d{1,7})(?::(\d{1,2}))?(?::(\d{1,2}))?", time.strip())
    if found is None:
        raise UsageError(f"--slurm time={time}: write minutes, hours:minutes:seconds or days-hours")
    days, *rest = (None if part is None else int(part) for part in found.groups())
    first, second, third = rest
    if days is not None or third is not None:
        hours, mins, seconds = first, second, third
    else:
        hours, mins, seconds = 0, first, second
    total = (days or 0) * 1440 + (hours or 0) * 60 + (mins or 0) + -(-(seconds or 0) // 60)
    if total < 1:
        raise UsageError(f"--slurm time={time}: a job needs a minute at least")
    return total


def _count(option: str, value: str) -> int:
    if not value.isdecimal() or not 0 < int(value) < 100_000:
        raise UsageError(f"--slurm {option}={value}: a number of at least 1")
    return int(value)
