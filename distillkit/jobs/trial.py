"""A trial of a training: a few real steps on synthetic data, to find out what the whole would take. Nothing is kept."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from distillkit.contracts.learner import Learner
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.source import Batches, Images, batch_types
from distillkit.contracts.teacher import Teacher
from distillkit.engine.config import TrainingConfig
from distillkit.engine.cost import CostMeter
from distillkit.engine.learning import LearnerTrainer
from distillkit.engine.loop import Loop
from distillkit.engine.networks import Networks, own_bytes
from distillkit.engine.optimizers import require_optimizer
from distillkit.engine.precision import precision_of
from distillkit.engine.spreading import PassMeter, activation_bytes
from distillkit.engine.trainer import Trainer
from distillkit.errors import DistillkitError
from distillkit.jobs.step_costs import SavedBytes, counted_steps, evaluation_seconds, speed
from distillkit.parallel.expected import Passes
from distillkit.parallel.strategy import Strategy
from distillkit.registry import registry
from distillkit.weights import weight_bytes

ENOUGH_SECONDS = 3.0
"""Batches grow until a step takes so long or is as large as the training's own passes, and are repeated for as long."""

EachStep = Callable[[], AbstractContextManager[object]]
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
        checkpoint_bytes: of one checkpoint. snapshot_bytes: of all snapshots of averages.
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
    snapshot_bytes: int
    seconds: float

    def memory(self, samples: int) -> float:
        """Bytes while `samples` are in one pass."""
        return self.weight_bytes + self.training_bytes + self.working_bytes + samples * self.activation_bytes_per_image


def synthetic_sources(recipe: Recipe, teacher: Teacher, device: torch.device) -> dict[type, Batches[Any]]:
    """The synthetic twins of all sources that the recipe reads."""
    offered = registry().sources()
    return {kind: offered[kind].synthetic(teacher, device) for kind in batch_types(recipe.needs)}


Spread = tuple[Strategy, Networks]
"""How the networks of a recipe are spread over processes, where that is done already."""


def forward_equivalents(
    recipe: Recipe, teacher: Teacher, accelerator: Accelerator, spread: Spread | None = None
) -> dict[str, float]:
    """Network passes of training on one image, by role: the mean of all stages by their shares, each counted over the
    steps in which every part is due once.

    The recipe's networks are changed by it; its objectives must have been prepared.

    Raises:
        DistillkitError: when a loss fails or is not finite.
    """
    training, cost = _counting(accelerator), CostMeter()
    trainer = _trainer(recipe, teacher, training, accelerator, cost, spread)
    return _mean(_counted_by_stage(trainer), recipe)


def _counting(accelerator: Accelerator) -> TrainingConfig:
    """A training whose passes are counted."""
    # Two samples: what is normalised over a batch needs more than one.
    # The layout is not chosen by a measurement, whose passes would be counted.
    return TrainingConfig(
        batch=2 * accelerator.num_processes, channels_last="off", precision=precision_of(accelerator)
    )  # fmt: skip


@dataclass(frozen=True)
class StepPasses:
    """Passes of a training's steps.

    Args:
        by_role: passes through every network in a step of one micro-batch.
        graph: what graphs hold at most for the way back, over what a pass of the micro-batch through the student's
            network keeps: 2 where a pass is of noise and of pairs together.
    """

    by_role: dict[str, Passes]
    graph: float


class _OnTheCPU:
    """An accelerator of one process in float32, whatever the one of the job is."""

    device = torch.device("cpu")
    num_processes, process_index, is_main_process, mixed_precision = 1, 0, True, "no"


def passes_of(recipe: Recipe, teacher: Teacher) -> StepPasses:
    """The mean of all stages by their shares, each counted over the steps in which every part is due once; of graphs
    the largest. Counted on the CPU in float32: in half precision graphs hold copies of weights too, which are most of
    what those of a small network hold.

    The recipe's networks are changed by it.

    Raises:
        DistillkitError: when a loss fails or is not finite.
    """
    for objective in recipe.objectives:
        objective.prepare()
    accelerator: Any = _OnTheCPU()
    training = _counting(accelerator)
    trainer = _trainer(recipe, teacher, training, accelerator, CostMeter())
    steps, meters = _period(recipe), list[PassMeter]()
    frozen = [parameter for denoiser in teacher.denoisers for parameter in denoiser.parameters()]
    kept = SavedBytes([*trainer.networks.parameters(), *frozen])
    for first, _ in training.divided([stage.share for stage in recipe.stages]):
        trainer.step = first
        meters.append(PassMeter())
        with meters[-1].watch(trainer.roles()):
            for _ in range(steps):
                with kept.counting():
                    trainer.train_step()
    forward, backward = (
        _mean([{role: getattr(one, way) / steps for role, one in meter.counts.items()} for meter in meters], recipe)
        for way in ("forward", "backward")
    )
    passes = {role: Passes(forward[role], backward[role]) for role in forward}
    return StepPasses(passes, kept.most / _kept_by_a_pass(recipe, teacher, training.batch))


def _kept_by_a_pass(recipe: Recipe, teacher: Teacher, batch: int) -> int:
    """Bytes for the way back of a batch through the student's network."""
    network, conditioner = recipe.student.denoiser, teacher.conditioner
    condition = conditioner.encode(conditioner.in_turn(range(batch)))
    x, t = torch.zeros(batch, *teacher.spec.shape), torch.full((batch,), network.schedule.t_max)
    return activation_bytes(network, lambda: network(x, t, condition))


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
    recipe: Recipe, teacher: Teacher, training: TrainingConfig, accelerator: Accelerator, cost: CostMeter,
    spread: Spread | None = None,
) -> Trainer:  # fmt: skip
    sources = synthetic_sources(recipe, teacher, accelerator.device)
    strategy, networks = spread or (None, None)
    trainer = Trainer(
        recipe, teacher, training, accelerator=accelerator, seed=0, sources=sources, cost=cost, strategy=strategy,
        networks=networks,
    )  # fmt: skip
    # Weights may be moved in memory here, and are where they will be from then on.
    trainer.prepare()
    return trainer


def _period(recipe: Recipe) -> int:
    """Steps after which every part was due: a method may update the student or a learner in every k-th only."""
    return math.lcm(recipe.student_every, *(learner.every for learner in recipe.learners))


def try_training(
    recipe: Recipe, teacher: Teacher, training: TrainingConfig, accelerator: Accelerator, *,
    enough: float | None = None, spread: Spread | None = None,
) -> Trial:  # fmt: skip
    """Take a few steps with this recipe, whose networks are changed by it; its objectives must have been prepared.

    Args:
        enough: seconds to measure for; `ENOUGH_SECONDS` if none.

    Raises:
        DistillkitError: when a loss fails or is not finite; or for networks in parts.
    """
    if spread and spread[0].spreads:
        # Every process would take as many steps as it finds time for, and wait for the others in the next.
        raise DistillkitError("networks are in parts; `--dry-run --devices N` says by formula what to expect")
    trainer = _trainer(recipe, teacher, _of_one(training, accelerator), accelerator, CostMeter(), spread)
    frozen = sum(map(weight_bytes, teacher.denoisers))
    given = [parameter for denoiser in teacher.denoisers for parameter in denoiser.parameters()]

    def held() -> int:
        return frozen + teacher.codec.weight_bytes + sum(objective.frozen_bytes for objective in recipe.objectives)

    def count(each: EachStep) -> tuple[dict[str, float], float]:
        stages = _counted_by_stage(trainer, each)
        evaluations = _mean(stages, recipe)
        # What follows is measured in the first stage; others take as much longer as they ask the networks more.
        return evaluations, sum(evaluations.values()) / max(sum(stages[0].values()), 1e-9)

    return _tried(
        trainer, training, _period(recipe), enough, count, given, held,
        lambda batch: evaluation_seconds(teacher, batch, accelerator.device),
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

    return _tried(trainer, training, 1, enough, count, (), lambda: 0, lambda batch: 0.0)


def _of_one(training: TrainingConfig, accelerator: Accelerator, least: int = 1) -> TrainingConfig:
    """The training with the smallest batch, and without what takes minutes to compile.

    Raises:
        UsageError: for an optimiser that is not installed.
    """
    require_optimizer(training)
    changes: dict[str, Any] = {
        "batch": least * accelerator.num_processes, "batch_per_device": None, "compile": "off", "optimizer": "adamw",
    }  # fmt: skip
    return training.model_copy(update=changes)


def _tried(
    trainer: Loop,
    training: TrainingConfig,
    period: int,
    enough: float | None,
    count: Callable[[EachStep], tuple[dict[str, float], float]],
    frozen: Iterable[Tensor],
    held: Callable[[], int],
    evaluation: Callable[[int], float],
) -> Trial:
    """Take a few steps with a trainer of the smallest batch.

    Args:
        training: that is tried.
        period: steps in which every part is due once.
        count: takes steps, each in a context: forward-equivalents an image by role, and how much longer the whole takes
            than what is measured after it.
        frozen: weights that are not trained, through which gradients go.
        held: bytes beside the networks that are trained, when they are loaded.
        evaluation: seconds of one sample through the teacher, in a pass of so many.
    """
    began, batch = time.monotonic(), trainer.config.batch
    processes = trainer.accelerator.num_processes
    local = training.batch // processes
    most = min(training.batch_per_device or local, local) * processes
    kept = SavedBytes([*trainer.networks.parameters(), *frozen])
    evaluations, longer = count(kept.counting)
    counted = counted_steps(trainer, period)
    timed, seconds = speed(trainer, batch, most, period, ENOUGH_SECONDS if enough is None else enough)
    weights, trained = trainer.networks.weight_bytes()
    working = 0 if counted is None else max(0, counted.most_bytes - kept.most - trained)
    return Trial(
        batch=timed,
        seconds_per_image=longer * seconds / timed,
        seconds_per_evaluation=evaluation(timed),
        flops_per_image=None if counted is None else longer * counted.flops / (period * batch),
        evaluations=evaluations,
        weight_bytes=weights + held(),
        training_bytes=trained + trainer.networks.moment_bytes(training),
        activation_bytes_per_image=kept.most / batch,
        working_bytes=working,
        checkpoint_bytes=trainer.networks.checkpoint_bytes(training),
        snapshot_bytes=training.snapshots * own_bytes(trainer.ema),
        seconds=time.monotonic() - began,
    )
