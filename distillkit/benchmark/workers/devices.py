"""Which devices and threads each worker gets."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch

from distillkit.errors import UsageError

VISIBLE, THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Share:
    """What one worker gets.

    Args:
        name: for people, such as "GPU 2".
        environment: variables of its processes.
    """

    name: str
    environment: dict[str, str] = field(default_factory=dict)


def shares(jobs: int, processes: int, device: str) -> tuple[list[Share], list[str]]:
    """A share of this machine for each of `jobs` workers of so many processes, and what is to be said of them.

    GPUs are given out one for each process. Where there are too few, workers share them, which is said.

    Raises:
        UsageError: when one worker's processes need more GPUs than there are.
    """
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return _of_gpus(jobs, processes)
    if device in ("auto", "mps") and torch.backends.mps.is_available():
        return [Share("the GPU")] * jobs, [f"note: {jobs} jobs share one GPU"] if jobs > 1 else []
    return _of_cores(jobs, processes)


def _of_gpus(jobs: int, processes: int) -> tuple[list[Share], list[str]]:
    there = visible_gpus()
    if processes > len(there):
        raise UsageError(
            f"--processes-per-job {processes}: there are {len(there)} GPUs here, and each process needs one"
        )
    said = []
    if jobs * processes > len(there):
        said.append(
            f"note: {jobs} jobs of {processes} {'process' if processes == 1 else 'processes'} share {len(there)} "
            f"{'GPU' if len(there) == 1 else 'GPUs'}, their memory included; --jobs {len(there) // processes} gives "
            "each job its own"
        )
    made = []
    for job in range(jobs):
        mine = [there[(job * processes + process) % len(there)] for process in range(processes)]
        made.append(Share(f"GPU{'' if processes == 1 else 's'} {','.join(mine)}", {VISIBLE: ",".join(mine)}))
    return made, said


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get(VISIBLE)
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()][: torch.cuda.device_count()]
    return [str(number) for number in range(torch.cuda.device_count())]


def _of_cores(jobs: int, processes: int) -> tuple[list[Share], list[str]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get(THREADS, "")
    threads = int(asked) if asked.isdecimal() and int(asked) else max(1, cores // (jobs * processes))
    said = []
    if jobs * processes * threads > cores:
        said.append(
            f"note: {jobs} jobs of {processes * threads} {'thread' if processes * threads == 1 else 'threads'} share "
            f"{cores} {'core' if cores == 1 else 'cores'}"
        )
    name = f"{processes * threads} {'thread' if processes * threads == 1 else 'threads'}"
    return [Share(name, {THREADS: str(threads)}) for _ in range(jobs)], said
