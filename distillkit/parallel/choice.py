"""Which strategy a job has, and what it cannot be combined with."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from distillkit.dtypes import HALF
from distillkit.errors import UsageError
from distillkit.parallel.replicate import Replicate
from distillkit.parallel.strategy import Strategy

ParallelName = Literal["auto", "replicate", "shard", "hybrid"]

NEEDS_TORCH = (2, 14)
"""Of networks in parts: the oldest release with which they were tried; 2.6 fails on the CPU."""
FITS = 0.7
"""Share of a device's memory that weights, gradients and moments may take; what passes compute needs the rest."""


@dataclass(frozen=True)
class Asked:
    """What a job asks of its strategy.

    Args:
        parallel: as `--parallel` has it.
        processes: of the job. local: of this machine.
        device: of this process.
        precision: "fp32", "bf16" or "fp16", of passes.
        shard_size: processes that share a network under hybrid; those of a machine if none.
        others: options that networks in parts may not be combined with, with their values.
    """

    parallel: ParallelName
    processes: int
    local: int
    device: torch.device
    precision: str = "fp32"
    shard_size: int | None = None
    others: Mapping[str, bool] | None = None

    @property
    def spreads(self) -> bool:
        """Whether networks are held in parts whatever their size."""
        return self.processes > 1 and self.parallel in ("shard", "hybrid")

    @property
    def may_spread(self) -> bool:
        """Whether networks may come to be held in parts, so that none is brought to a device before that is settled."""
        by_choice = self.parallel == "auto" and self.device.type == "cuda"
        return self.spreads or (self.processes > 1 and by_choice)


def local_processes(processes: int) -> int:
    """Processes of the job on this machine, by what launchers set."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", processes))


def choose(asked: Asked, held_bytes: Callable[[], int], say: Callable[[str], None] = lambda text: None) -> Strategy:
    """The strategy, with a line on what "auto" chose.

    Args:
        held_bytes: of weights, gradients and moments of all networks.

    Raises:
        UsageError: for a strategy that cannot be had, or not with the other settings.
    """
    name = asked.parallel
    if asked.processes == 1:
        if name in ("shard", "hybrid"):
            say(f"--parallel {name}: there is one process, which holds all; `torchrun --nproc-per-node N` starts more")
        return Replicate(1, asked.device)
    if name == "auto":
        name = _fitting(asked, held_bytes(), say)
    if name == "replicate":
        return Replicate(asked.processes, asked.device)
    _check(asked, name)
    from torch.distributed.device_mesh import init_device_mesh

    from distillkit.parallel.shard import Shard

    kind, half = asked.device.type, HALF.get(asked.precision)
    if name == "shard":
        return Shard(init_device_mesh(kind, (asked.processes,), mesh_dim_names=("shard",)), asked.device, half)
    size = group_size(asked)
    shape = (asked.processes // size, size)
    say(f"networks: in parts within {size} processes, and {shape[0]} times (--parallel hybrid)")
    strategy = Shard(init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard")), asked.device, half)
    strategy.name = "hybrid"
    return strategy


def group_size(asked: Asked) -> int:
    """Processes that share a network under hybrid.

    Raises:
        UsageError: where the processes cannot be divided so, or one group has them all.
    """
    size = asked.shard_size or asked.local
    if asked.processes % size:
        raise UsageError(
            f"--parallel hybrid: {asked.processes} processes are no multiple of {size}, which share a network "
            "(--shard-size)"
        )
    if size in (1, asked.processes):
        raise UsageError(
            f"--parallel hybrid: {size} of {asked.processes} processes would share a network; use --parallel "
            f"{'replicate' if size == 1 else 'shard'}, or another --shard-size"
        )
    return size


def _fitting(asked: Asked, held: int, say: Callable[[str], None]) -> Literal["replicate", "shard"]:
    size = f"weights, gradients and moments of all networks, {held / 1e9:,.2f} GB,"
    if asked.device.type != "cuda":
        say(f"networks: whole on each of {asked.processes} processes (--parallel replicate); {size} are held by each")
        return "replicate"
    # All processes must choose alike, and so by the smallest device, and not by what is free at the moment.
    room = _least(torch.cuda.get_device_properties(asked.device).total_memory, asked.processes)
    if held <= FITS * room:
        say(
            f"networks: whole on each of {asked.processes} processes (--parallel replicate); {size} fit into "
            f"{room / 1e9:,.0f} GB"
        )
        return "replicate"
    say(f"networks: in parts (--parallel shard); {size} are too large beside passes in {room / 1e9:,.0f} GB")
    return "shard"


def _least(own: int, processes: int) -> int:
    """The smallest of the numbers that the processes have."""
    numbers = [own] * processes
    torch.distributed.all_gather_object(numbers, own)
    return min(numbers)


def _check(asked: Asked, name: str) -> None:
    """Refuse what networks in parts do not do.

    Raises:
        UsageError: in one message.
    """
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2] if part.isdecimal())
    problems = []
    if release < NEEDS_TORCH:
        problems.append(f"it needs torch {'.'.join(map(str, NEEDS_TORCH))} or later, and this is {torch.__version__}")
    if asked.device.type not in ("cpu", "cuda"):
        problems.append(f"there are no collective operations for {asked.device.type}")
    if asked.precision == "fp16":
        problems.append("losses are not scaled there, as --precision fp16 needs; use bf16")
    problems += [f"it is not done with {option}" for option, given in (asked.others or {}).items() if given]
    if problems:
        raise UsageError(f"--parallel {name}: {'; '.join(problems)}. Leave that out, or use --parallel replicate")
