"""What steps of a training take: time, floating-point operations, and bytes of tensors."""

from __future__ import annotations

import contextlib
import statistics
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

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


class _Saved:
    """A tensor that a graph holds: it goes when the graph goes."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class SavedBytes:
    """Counts the bytes that graphs hold for their backward passes, each storage once: `alive` now, and at `most`.

    Args:
        without: tensors that are not counted, such as parameters, which are there in any case.
    """

    def __init__(self, without: Iterable[Tensor] = ()) -> None:
        self.alive = self.most = 0
        self._without = {tensor.untyped_storage().data_ptr() for tensor in without}
        self._holders: dict[int, int] = {}

    @contextmanager
    def counting(self) -> Iterator[Self]:
        """Count what graphs hold that are built while the context lasts."""
        with torch.autograd.graph.saved_tensors_hooks(self._hold, lambda saved: saved.tensor):
            yield self

    def _hold(self, tensor: Tensor) -> _Saved:
        saved, storage = _Saved(tensor), tensor.untyped_storage()
        with contextlib.suppress(RuntimeError):  # of a tensor under forward-mode differentiation
            if (place := storage.data_ptr()) not in self._without:
                holders = self._holders[place] = self._holders.get(place, 0) + 1
                self.alive += storage.nbytes() if holders == 1 else 0
                self.most = max(self.most, self.alive)
                weakref.finalize(saved, self._release, place, storage.nbytes())
        return saved

    def _release(self, place: int, size: int) -> None:
        self._holders[place] -= 1
        if not self._holders[place]:
            del self._holders[place]
            self.alive -= size
