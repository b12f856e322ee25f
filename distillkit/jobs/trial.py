"""A rehearsal of a training: a few real steps on made-up data, to tell what the whole would take. Nothing is kept."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from distillkit.contracts.condition import Condition
from distillkit.contracts.random import Indices, SampleRNG
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.step import Images, Pairs
from distillkit.contracts.teacher import Teacher
from distillkit.engine.config import TrainingConfig
from distillkit.engine.cost import CostMeter
from distillkit.engine.trainer import Trainer

ENOUGH_SECONDS = 3.0
"""Batches are doubled until a step takes so long, or is as large as the training's own passes."""


@dataclass(frozen=True)
class Rehearsal:
    """What one process on this device would take; measured, but for the memory, which is counted in tensors.

    Args:
        batch: samples in the passes that were timed.
        seconds_per_image: of training, on one process.
        seconds_per_evaluation: of one sample through the teacher, without gradient.
        flops_per_image: floating-point operations of training, backward passes included.
        evaluations: forward-equivalents an image, by role (a trained one counts three).
        weight_bytes: parameters of every network.
        training_bytes: gradients and moments of the trained ones.
        activation_bytes_per_image: what is kept for the backward pass.
        checkpoint_bytes: of one checkpoint.
        seconds: that the rehearsal took.
    """

    batch: int
    seconds_per_image: float
    seconds_per_evaluation: float
    flops_per_image: float
    evaluations: Mapping[str, float]
    weight_bytes: int
    training_bytes: int
    activation_bytes_per_image: float
    checkpoint_bytes: int
    seconds: float

    def memory(self, samples: int) -> float:
        """Bytes while `samples` are in one pass."""
        return self.weight_bytes + self.training_bytes + samples * self.activation_bytes_per_image


class MadeUp:
    """Noise in the place of pairs and images."""

    def __init__(self, teacher: Teacher, device: torch.device) -> None:
        self.teacher, self.device = teacher, device

    def _draw(self, rng: SampleRNG, step: int, indices: Indices) -> tuple[Tensor, Condition]:
        noise = rng.normal("made up", step, indices, self.teacher.spec.shape).to(self.device)
        return noise, self.teacher.draw_condition(rng.uniform("made up", step, indices)).to(self.device)


class MadeUpPairs(MadeUp):
    def batch(self, rng: SampleRNG, step: int, indices: Indices) -> Pairs:
        noise, condition = self._draw(rng, step, indices)
        return Pairs(noise, noise.clamp(-1, 1), condition)


class MadeUpImages(MadeUp):
    def batch(self, rng: SampleRNG, step: int, indices: Indices) -> Images:
        noise, condition = self._draw(rng, step, indices)
        return Images(noise.clamp(-1, 1), condition)


def forward_equivalents(recipe: Recipe, teacher: Teacher, accelerator: Accelerator) -> dict[str, float]:
    """Network passes of training on one image, by role, counted over the steps in which every part is due once.

    The recipe's networks are changed by it.

    Raises:
        DistillkitError: when an objective cannot get what it needs, or a loss is not finite.
    """
    for objective in recipe.objectives:
        objective.prepare()
    # Two samples: what is normalised over a batch needs more than one.
    training = TrainingConfig(batch=2 * accelerator.num_processes)
    cost = CostMeter()
    trainer = Trainer(
        recipe, teacher, training, accelerator, seed=0, pairs=MadeUpPairs(teacher, accelerator.device),
        images=MadeUpImages(teacher, accelerator.device), cost=cost,
    )  # fmt: skip
    steps = _period(recipe)
    with cost.watch(trainer.roles(), accelerator.num_processes):
        for _ in range(steps):
            trainer.train_step()
    return {role: count / (steps * training.batch) for role, count in cost.counts.items()}


def _period(recipe: Recipe) -> int:
    """Steps after which every part was due: a method may update the student or a learner in every k-th only."""
    return math.lcm(recipe.student_every, *(learner.every for learner in recipe.learners))


def rehearse(recipe: Recipe, teacher: Teacher, training: TrainingConfig, accelerator: Accelerator) -> Rehearsal:
    """Take a few steps with this recipe, whose networks are changed by it.

    Raises:
        DistillkitError: when an objective cannot get what it needs, or a loss is not finite.
    """
    began = time.monotonic()
    for objective in recipe.objectives:
        objective.prepare()
    device = accelerator.device
    local = training.batch // accelerator.num_processes
    most = min(training.batch_per_device or local, local) * accelerator.num_processes
    cost = CostMeter()
    batch = accelerator.num_processes
    trainer = Trainer(
        recipe, teacher, training.model_copy(update={"batch": batch, "batch_per_device": None, "compile": False}),
        accelerator, seed=0, pairs=MadeUpPairs(teacher, device), images=MadeUpImages(teacher, device), cost=cost,
    )  # fmt: skip
    period = _period(recipe)
    kept = _Saved(trainer)
    first = time.perf_counter()
    with FlopCounterMode(display=False) as flops, cost.watch(trainer.roles(), accelerator.num_processes):
        for _ in range(period):
            with kept.one_step():
                trainer.train_step()
    _wait(device)
    seconds = (time.perf_counter() - first) / period
    images = period * batch
    evaluations = {role: count / images for role, count in cost.counts.items()}
    # A first step that takes long is measurement enough; the set-up in it hardly counts.
    if seconds < ENOUGH_SECONDS:
        seconds = _timed(trainer, period, device)
    while batch < most and seconds < ENOUGH_SECONDS:
        batch = min(2 * batch, most)
        trainer.config = trainer.config.model_copy(update={"batch": batch})
        _timed(trainer, 1, device)
        seconds = _timed(trainer, period, device)
    weights, trained = trainer.weight_bytes()
    return Rehearsal(
        batch=batch,
        seconds_per_image=seconds / batch,
        seconds_per_evaluation=_evaluation_seconds(teacher, batch, device),
        flops_per_image=flops.get_total_flops() / images,
        evaluations=evaluations,
        weight_bytes=weights + sum(p.numel() * p.element_size() for p in teacher.denoiser.parameters()),
        training_bytes=3 * trained,
        activation_bytes_per_image=kept.most / accelerator.num_processes,
        checkpoint_bytes=trainer.checkpoint_bytes(),
        seconds=time.monotonic() - began,
    )


def _timed(trainer: Trainer, steps: int, device: torch.device) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    for _ in range(steps):
        trainer.train_step()
    _wait(device)
    return (time.perf_counter() - began) / steps


@torch.inference_mode()
def _evaluation_seconds(teacher: Teacher, batch: int, device: torch.device) -> float:
    rng = SampleRNG(0)
    x = rng.normal("rehearsal", 0, range(batch), teacher.spec.shape).to(device)
    condition = teacher.draw_condition(rng.uniform("rehearsal", 0, range(batch))).to(device)
    sigma = torch.ones(batch, device=device)
    teacher(x, sigma, condition)
    _wait(device)
    began = time.perf_counter()
    teacher(x, sigma, condition)
    _wait(device)
    return (time.perf_counter() - began) / batch


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Saved:
    """Counts the bytes that are saved for backward passes, each storage once, parameters not at all.

    All losses of a step are evaluated before any backward pass, so what a step saves is alive at one time.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._parameters = {p.untyped_storage().data_ptr() for p in trainer.parameters()}
        self.most = 0

    @contextmanager
    def one_step(self) -> Iterator[None]:
        saved: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._parameters:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
            yield
        self.most = max(self.most, sum(saved.values()))
