"""A trial of a training: a few real steps on synthetic data, to find out what the whole would take. Nothing is kept."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distillkit.contracts.learner import Learner
from distillkit.contracts.random import SampleRNG
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.source import Batches, Images, batch_types
from distillkit.contracts.teacher import Teacher
from distillkit.engine.config import TrainingConfig
from distillkit.engine.cost import CostMeter, flop_counter
from distillkit.engine.learning import LearnerTrainer
from distillkit.engine.loop import Loop
from distillkit.engine.trainer import Trainer
from distillkit.registry import registry

ENOUGH_SECONDS = 3.0
"""Batches grow until a step takes so long or is as large as the training's own passes, and are repeated for as long."""
GROWTH, REPEATS = 4, 25

EachStep = Callable[[], AbstractContextManager[None]]
"""Makes a context for a step."""


@dataclass(frozen=True)
class Trial:
    """What one process on this device would take; measured, but for the memory, which is counted in tensors.

    Args:
        batch: samples in the passes that were timed.
        seconds_per_image: of training, on one process.
        seconds_per_evaluation: of one sample through the teacher, without gradient.
        flops_per_image: floating-point operations of training, backward passes included; None where they cannot be
            counted (forward-mode differentiation).
        evaluations: forward-equivalents an image, by role (a trained one counts three), the mean of all stages.
        weight_bytes: parameters of every network, of the codec and of perceptual distances.
        training_bytes: gradients and moments of the trained ones.
        activation_bytes_per_image: what is kept for the backward pass.
        working_bytes: what a pass of one sample takes beside: activations that are computed anew on the way back, which
            are those of a few samples in a larger pass too.
        checkpoint_bytes: of one checkpoint.
        seconds: that the trial took.
    """

    batch: int
    seconds_per_image: float
    seconds_per_evaluation: float
    flops_per_image: float | None
    evaluations: Mapping[str, float]
    weight_bytes: int
    training_bytes: int
    activation_bytes_per_image: float
    working_bytes: int
    checkpoint_bytes: int
    seconds: float

    def memory(self, samples: int) -> float:
        """Bytes while `samples` are in one pass."""
        return self.weight_bytes + self.training_bytes + self.working_bytes + samples * self.activation_bytes_per_image


def synthetic_sources(recipe: Recipe, teacher: Teacher, device: torch.device) -> dict[type, Batches[Any]]:
    """The synthetic twins of all sources that the recipe reads."""
    offered = registry().sources()
    return {kind: offered[kind].synthetic(teacher, device) for kind in batch_types(recipe.needs)}


def forward_equivalents(recipe: Recipe, teacher: Teacher, accelerator: Accelerator) -> dict[str, float]:
    """Network passes of training on one image, by role: the mean of all stages by their shares, each counted over the
    steps in which every part is due once.

    The recipe's networks are changed by it; its objectives must have been prepared.

    Raises:
        DistillkitError: when a loss fails or is not finite.
    """
    # Two samples: what is normalised over a batch needs more than one.
    # The layout is not chosen by a measurement, whose passes would be counted.
    training, cost = TrainingConfig(batch=2 * accelerator.num_processes, channels_last="off"), CostMeter()
    trainer = _trainer(recipe, teacher, training, accelerator, cost)
    return _mean(_counted_by_stage(trainer), recipe)


def _counted_by_stage(trainer: Trainer, each: EachStep = contextlib.nullcontext) -> list[dict[str, float]]:
    """Network passes of training on one image, by role, of every stage; the training stands at the first again.

    Args:
        each: makes a context for every step.
    """
    steps, batch, found = _period(trainer.recipe), trainer.config.batch, []
    for first, _ in trainer.config.divided([stage.share for stage in trainer.recipe.stages]):
        trainer.step, before = first, dict(trainer.cost.counts)
        with trainer.cost.watch(trainer.roles(), trainer.accelerator.num_processes):
            for _ in range(steps):
                with each():
                    trainer.train_step()
        counts = {role: count - before.get(role, 0) for role, count in trainer.cost.counts.items()}
        found.append({role: count / (steps * batch) for role, count in counts.items() if count})
    trainer.step = 0
    return found


def _mean(stages: Sequence[Mapping[str, float]], recipe: Recipe) -> dict[str, float]:
    """The mean of the stages' counts by their shares."""
    shares = [stage.share for stage in recipe.stages]
    roles = dict.fromkeys(role for counts in stages for role in counts)
    return {
        role: sum(share * counts.get(role, 0) for share, counts in zip(shares, stages, strict=True)) / sum(shares)
        for role in roles
    }


def _trainer(
    recipe: Recipe, teacher: Teacher, training: TrainingConfig, accelerator: Accelerator, cost: CostMeter
) -> Trainer:
    sources = synthetic_sources(recipe, teacher, accelerator.device)
    trainer = Trainer(recipe, teacher, training, accelerator=accelerator, seed=0, sources=sources, cost=cost)
    # Weights may be moved in memory here, and are where they will be from then on.
    trainer.prepare()
    return trainer


def _period(recipe: Recipe) -> int:
    """Steps after which every part was due: a method may update the student or a learner in every k-th only."""
    return math.lcm(recipe.student_every, *(learner.every for learner in recipe.learners))


def try_training(
    recipe: Recipe, teacher: Teacher, training: TrainingConfig, accelerator: Accelerator, *, enough: float | None = None
) -> Trial:
    """Take a few steps with this recipe, whose networks are changed by it; its objectives must have been prepared.

    Args:
        enough: seconds to measure for; `ENOUGH_SECONDS` if none.

    Raises:
        DistillkitError: when a loss fails or is not finite.
    """
    trainer = _trainer(recipe, teacher, _of_one(training, accelerator), accelerator, CostMeter())
    frozen = sum(p.numel() * p.element_size() for p in teacher.denoiser.parameters())

    def held() -> int:
        return frozen + teacher.codec.weight_bytes + sum(objective.frozen_bytes for objective in recipe.objectives)

    def count(each: EachStep) -> tuple[dict[str, float], float]:
        stages = _counted_by_stage(trainer, each)
        evaluations = _mean(stages, recipe)
        # What follows is measured in the first stage; others take as much longer as they ask the networks more.
        return evaluations, sum(evaluations.values()) / max(sum(stages[0].values()), 1e-9)

    return _tried(
        trainer, training, _period(recipe), enough, count, held,
        lambda batch: _evaluation_seconds(teacher, batch, accelerator.device),
    )  # fmt: skip


def try_learner(
    learner: Learner, images: Batches[Images], training: TrainingConfig, accelerator: Accelerator, *,
    enough: float | None = None,
) -> Trial:  # fmt: skip
    """As `try_training`, of a learner that is trained alone.

    Raises:
        DistillkitError: when its loss fails or is not finite.
    """
    # A pass of text and pictures compares them with each other, which takes two.
    short = _of_one(training, accelerator, least=2)
    trainer = LearnerTrainer(learner, short, accelerator=accelerator, seed=0, sources={Images: images})
    trainer.prepare()

    def count(each: EachStep) -> tuple[dict[str, float], float]:
        with each():
            trainer.train_step()
        return {}, 1.0

    return _tried(trainer, training, 1, enough, count, lambda: 0, lambda batch: 0.0)


def _of_one(training: TrainingConfig, accelerator: Accelerator, least: int = 1) -> TrainingConfig:
    """The training with the smallest batch."""
    changes = {"batch": least * accelerator.num_processes, "batch_per_device": None, "compile": False}
    return training.model_copy(update=changes)


def _tried(
    trainer: Loop,
    training: TrainingConfig,
    period: int,
    enough: float | None,
    count: Callable[[EachStep], tuple[dict[str, float], float]],
    held: Callable[[], int],
    evaluation: Callable[[int], float],
) -> Trial:
    """Take a few steps with a trainer of the smallest batch.

    Args:
        training: that is tried.
        period: steps in which every part is due once.
        count: takes steps, each in a context: forward-equivalents an image by role, and how much longer the whole takes
            than what is measured after it.
        held: bytes beside the networks that are trained, when they are loaded.
        evaluation: seconds of one sample through the teacher, in a pass of so many.
    """
    began, batch = time.monotonic(), trainer.config.batch
    processes = trainer.accelerator.num_processes
    local = training.batch // processes
    most = min(training.batch_per_device or local, local) * processes
    kept = _Saved(trainer)
    evaluations, longer = count(kept.one_step)
    counted = _counted(trainer, period)
    timed, seconds = _speed(trainer, batch, most, period, ENOUGH_SECONDS if enough is None else enough)
    weights, trained = trainer.networks.weight_bytes()
    working = 0 if counted is None else max(0, counted.most_bytes - kept.most - trained)
    return Trial(
        batch=timed,
        seconds_per_image=longer * seconds / timed,
        seconds_per_evaluation=evaluation(timed),
        flops_per_image=None if counted is None else longer * counted.flops / (period * batch),
        evaluations=evaluations,
        weight_bytes=weights + held(),
        training_bytes=3 * trained,
        activation_bytes_per_image=kept.most / batch,
        working_bytes=working,
        checkpoint_bytes=trainer.networks.checkpoint_bytes(),
        seconds=time.monotonic() - began,
    )


def _speed(trainer: Loop, batch: int, most: int, period: int, enough: float) -> tuple[int, float]:
    """(samples of a pass, seconds of a step with them), on passes as large as the training's where time allows.

    What the first steps take besides, such as the choice of kernels, is left out: each size is tried once before it is
    timed, and the median is taken, as a machine has other things to do.
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
class _Counted:
    """Operations of some steps, and the most bytes of the tensors made in them that were alive at one time."""

    flops: int
    most_bytes: int


def _counted(trainer: Loop, steps: int) -> _Counted | None:
    """None where the counters do not know the operations."""
    try:
        with _Alive() as alive, flop_counter() as flops:
            for _ in range(steps):
                trainer.train_step()
    except Exception:  # forward-mode differentiation has tensors without storage, which the counters cannot see
        return None
    return _Counted(flops.get_total_flops(), alive.most)


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
def _evaluation_seconds(teacher: Teacher, batch: int, device: torch.device) -> float:
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
