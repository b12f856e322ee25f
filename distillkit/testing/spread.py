"""Networks that two processes hold in parts, against the same networks whole in one."""

from __future__ import annotations

import json
import math
import multiprocessing
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distillkit.contracts.method import Method
from distillkit.engine.config import TrainingConfig
from distillkit.engine.trainer import Trainer
from distillkit.errors import UsageError
from distillkit.parallel.choice import Asked, ParallelName, choose
from distillkit.testing.failure import CheckFailure
from distillkit.testing.setup import BATCH, CPU, Settings, recipe_of, synthetic_sources
from distillkit.testing.teachers import smallest

PROCESSES = 2
CLOSE = 1e-3
"""Relative; the networks are float32, and rounding grows from step to step."""
EPS = 1e-3
"""Of Adam: with the usual one its first updates are as large where gradients are mere rounding."""

Means = dict[str, float]


@dataclass(frozen=True)
class Member:
    """What a trainer asks of accelerate's Accelerator, for one of some processes that were started here."""

    process_index: int
    num_processes: int
    device: torch.device = CPU
    mixed_precision: str = "no"

    @property
    def is_main_process(self) -> bool:
        return self.process_index == 0

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        """The sum or mean over processes."""
        dist.all_reduce(tensor)
        return tensor / self.num_processes if reduction == "mean" else tensor


def networks_may_be_held_in_parts(method: type[Method], settings: Settings) -> None:
    """Two processes that hold every network in parts compute the losses and gradient norms of one that holds them
    whole, with the defaults and with each example, or are refused before the first step (`whole_networks`).

    Where processes cannot be forked nothing is checked.
    """
    if not sys.platform.startswith("linux"):
        return
    chosen = [settings] if settings else [{}, *method.examples]
    found = _forked(method, chosen)
    for given, its in zip(chosen, found, strict=True):
        if its is None:
            continue
        expected = _means(method, given, Member(0, 1))
        if expected.keys() != its.keys():
            strange = sorted(expected.keys() ^ its.keys())
            raise _failure(f"{', '.join(strange)} are logged by one of them alone with {given}")
        for name, value in expected.items():
            if not math.isclose(its[name], value, rel_tol=CLOSE, abs_tol=CLOSE * 1e-3):
                raise _failure(f"{name} is {its[name]:g} and not {value:g} with {given}")


def _failure(what: str) -> CheckFailure:
    return CheckFailure(
        f"two processes that hold networks in parts (--parallel shard) differ from one that holds them whole: {what}",
        "large networks are trained so, and the result must not depend on it",
        "evaluate networks by their own call, equally often whatever the samples are, and change weights by the "
        "optimiser alone; where that cannot be, say why in `whole_networks` of the objective or learner",
    )


def _means(method: type[Method], settings: Settings, member: Member, parallel: ParallelName = "replicate") -> Means:
    """Means of all that is logged in some steps. One process makes passes of as many samples as each of two does."""
    teacher = smallest()
    recipe = recipe_of(method, teacher, settings)
    asked = Asked(parallel, member.num_processes, member.num_processes, CPU)
    config = TrainingConfig(
        batch=BATCH, duration=4 * BATCH * recipe.student_every, batch_per_device=BATCH // PROCESSES, lr=1e-3, eps=EPS,
        channels_last="off",
    )  # fmt: skip
    trainer = Trainer(
        recipe, teacher, config, accelerator=member, seed=0,
        strategy=choose(asked, lambda: 0), sources=synthetic_sources(teacher, recipe.needs),
    )  # fmt: skip
    for _ in range(recipe.student_every + 1):
        trainer.train_step()
    return trainer._means.read(member)


def _forked(method: type[Method], chosen: Sequence[Settings]) -> list[Means | None]:
    """What each setting logs on processes that are forked from this one; None where it is refused.

    Raises:
        CheckFailure: where one of them fails, or they wait for each other for ever.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        members = [
            context.Process(target=_member, args=(method, chosen, rank, folder), daemon=True)
            for rank in range(PROCESSES)
        ]
        try:
            for member in members:
                member.start()
            waiting: dict[Any, Any] = {member.sentinel: member for member in members}
            while waiting:
                for ended in connection.wait([*waiting]):
                    member = waiting.pop(ended)
                    member.join()
                    if member.exitcode:
                        why = folder / f"{members.index(member)}.txt"
                        raise _failure(why.read_text() if why.is_file() else f"one ended with code {member.exitcode}")
        finally:
            for member in members:
                member.kill()
                member.join()
        found: list[Means | None] = json.loads((folder / "means.json").read_text())
        return found


SECONDS = 300
"""For which one process may keep the other waiting."""


def _member(method: type[Method], chosen: Sequence[Settings], rank: int, folder: Path) -> None:
    """One of the processes."""
    from datetime import timedelta

    # A pool of threads does not live on in a process that was forked.
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=PROCESSES,
            timeout=timedelta(seconds=SECONDS),
        )  # fmt: skip
        found: list[Any] = []
        for settings in chosen:
            try:
                found.append(_means(method, settings, Member(rank, PROCESSES), "shard"))
            except UsageError as error:
                if "whole" not in str(error) and "in parts" not in str(error):
                    raise
                found.append(None)
        if rank == 0:
            (folder / "means.json").write_text(json.dumps(found))
        dist.barrier()
    except BaseException as error:
        (folder / f"{rank}.txt").write_text(f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-6)}")
        raise SystemExit(1) from None
