"""What steps of a training take: time, floating-point operations, and bytes of tensors."""

from __future__ import annotations

import contextlib
import statistics
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distillkit.contracts.random import SampleRNG
from distillkit.contracts.teacher import Teacher
from distillkit.engine.cost import flop_counter
from distillkit.engine.loop import Loop

GROWTH, REPEATS = 4, 25
"""Factor from one size of a pass to the next that is tried; the most steps that are timed at the last."""


def speed(trainer: Loop, batch: int, most: int, period: int, enough: float) -> tuple[int, float]:
    """(samples of a pass, seconds of a step with them), on passes as large as the training's where time allows.

    What the first steps take besides, such as the choice of kernels, is left out: each size is tried once before it is
    timed, and the median is taken, as a machine has other things to do.

    Args:
        batch: of the trainer as it is, in samples; its configuration is changed to the one that is returned.
        most: samples of the training's own pass.
        period: steps in which every part is due once.
        enough: seconds to measure for.
    """
    device = trainer.accelerator.device
    seconds = _timed(trainer, period, device)
    while batch < most and seconds < enough:
        batch = min(GROWTH * batch, most)
        trainer.config = trainer.config.model_copy(update={"batch": batch})
        _timed(trainer, 1, device)
        seconds = _timed(trainer, period, device)
    times = [seconds]
    while sum(times) * period < enough and len(times) < REPEATS:
        times.append(_timed(trainer, period, device))
    return batch, statistics.median(times)


@dataclass(frozen=True)
class Counted:
    """Operations of some steps, and the most bytes of the tensors made in them that were alive at one time."""

    flops: int
    most_bytes: int


def counted_steps(trainer: Loop, steps: int) -> Counted | None:
    """What so many steps take; None where the counters do not know the operations."""
    try:
        with _Alive() as alive, flop_counter() as flops:
            for _ in range(steps):
                trainer.train_step()
    except Exception:  # forward-mode differentiation has tensors without storage, which the counters cannot see
        return None
    return Counted(flops.get_total_flops(), alive.most)


class _Alive(TorchDispatchMode):
    """Follows the bytes of all tensors that are made while it lasts."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bytes: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and (storage := made.untyped_storage())._cdata not in {*given, *self._bytes}:
                self._bytes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._freed, storage._cdata)
        return out

    def _freed(self, key: int) -> None:
        self.now -= self._bytes.pop(key)


def _timed(trainer: Loop, steps: int, device: torch.device) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    for _ in range(steps):
        trainer.train_step()
    _wait(device)
    return (time.perf_counter() - began) / steps


@torch.inference_mode()
def evaluation_seconds(teacher: Teacher, batch: int, device: torch.device) -> float:
    """Seconds of one sample through the teacher, in a pass of `batch`."""
    rng, conditioner = SampleRNG(0), teacher.conditioner
    x = rng.normal("trial", 0, range(batch), teacher.spec.shape).to(device)
    condition = conditioner.encode(conditioner.in_turn(range(batch))).to(device)
    t = teacher.schedule.grid(3)[1:2].float().expand(batch).to(device)
    teacher(x, t, condition)
    _wait(device)
    began = time.perf_counter()
    teacher(x, t, condition)
    _wait(device)
    return (time.perf_counter() - began) / batch


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class SavedBytes:
    """Counts the bytes that are saved for backward passes, each storage once, parameters not at all.

    The student's graph is freed before the learners' are built, so this is more than is alive at one time.
    """

    def __init__(self, trainer: Loop) -> None:
        self._parameters = {p.untyped_storage().data_ptr() for p in trainer.networks.parameters()}
        self.most = 0

    @contextmanager
    def one_step(self) -> Iterator[None]:
        saved: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            with contextlib.suppress(RuntimeError):  # of a tensor under forward-mode differentiation
                if (address := storage.data_ptr()) not in self._parameters:
                    saved[address] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
            yield
        self.most = max(self.most, sum(saved.values()))
