"""What the objectives and learners of one training step share, computed once and lazily."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.conditioner import Conditioner
from distillkit.contracts.random import Indices, SampleRNG
from distillkit.contracts.source import Batches, Images, Pairs, PairSamples, Samples
from distillkit.contracts.stage import Stage
from distillkit.contracts.student import StudentGenerator

Batch = TypeVar("Batch")


class Draws:
    """What one training step reads, on one process and one micro-batch: batches of data, and random numbers.

    Every random draw depends on the run's seed, the step and the sample's index in the total batch, so it does
    not matter how many processes or micro-batches share the work.

    Args:
        index: number of the step, from 0.
        indices: the samples' places in the total batch.
        rng: the run's random draws.
        device: where tensors are to be.
        sources: opened sources by the type of their batches.
        batch: samples of the total batch; those of `indices` by default.
    """

    def __init__(
        self,
        *,
        index: int,
        indices: Indices,
        rng: SampleRNG,
        device: torch.device,
        sources: Mapping[type, Batches[Any]] | None = None,
        batch: int | None = None,
    ) -> None:
        self.index, self.indices, self.batch = index, indices, batch or len(indices)
        self.rng, self.device = rng, device
        self._sources = sources or {}
        self._batches: dict[type, Any] = {}
        self._logged: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def before(self) -> int:
        """Samples of all steps before this one."""
        return self.index * self.batch

    def __getitem__(self, kind: type[Batch]) -> Batch:
        """This step's batch of a source, such as `step[Images]`, drawn once.

        Raises:
            RuntimeError: where no part declares it in `needs`.
        """
        if kind not in self._batches:
            if kind not in self._sources:
                raise RuntimeError(
                    f"step[{kind.__name__}] is read but no objective or learner declares needs = ({kind.__name__},)"
                )
            self._batches[kind] = self._sources[kind].batch(self.rng, self.index, self.indices)
        batch: Batch = self._batches[kind]
        return batch

    @property
    def pairs(self) -> Pairs:
        """A batch of the teacher's noise-image pairs; needs `Pairs`."""
        return self[Pairs]

    @property
    def images(self) -> Images:
        """A batch of real images; needs `Images`."""
        return self[Images]

    def normal_of(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Fresh standard normal noise (B, *shape); one stream for each `purpose`."""
        return self.rng.normal(purpose, self.index, self.indices, shape).to(self.device, non_blocking=True)

    def uniform(self, purpose: str) -> Tensor:
        """Fresh uniforms (B,) float64 in [0, 1) on the CPU; one stream for each `purpose`."""
        return self.rng.uniform(purpose, self.index, self.indices)

    def drawn_from(self, values: Tensor, purpose: str) -> Tensor:
        """One of `values` (N,), on the CPU, for each sample, evenly drawn, (B,); one stream for each `purpose`."""
        return values[(self.uniform(purpose) * len(values)).long()].to(self.device, non_blocking=True)

    def log(self, name: str, value: Tensor) -> None:
        """Record a scalar tensor; kept on the device and averaged over the logging interval."""
        self._logged[name] = value.detach()

    @property
    def logged(self) -> Mapping[str, Tensor]:
        return self._logged


class Step(Draws):
    """One training step as seen by objectives and learners: what it draws, and what the student makes of it.

    Args:
        index, indices, rng, device, sources, batch: as `Draws` takes them.
        student: the generator in training.
        conditioner: the teacher's.
        student_due: whether the student is updated in this step.
        needs: what the recipe declares to read; see `Objective.needs`.
        stage: the part of the training that the step belongs to.
        progress: share of the stage that is done before this step, 0 to 1: for what changes on the way.
    """

    def __init__(
        self,
        *,
        index: int,
        indices: Indices,
        student: StudentGenerator,
        conditioner: Conditioner,
        rng: SampleRNG,
        device: torch.device,
        student_due: bool = True,
        needs: frozenset[type] = frozenset(),
        sources: Mapping[type, Batches[Any]] | None = None,
        stage: Stage | None = None,
        progress: float = 0.0,
        batch: int | None = None,
    ) -> None:
        super().__init__(index=index, indices=indices, rng=rng, device=device, sources=sources, batch=batch)
        self.student, self.student_due = student, student_due
        self.stage, self.progress = stage or Stage(), progress
        self._conditioner = conditioner
        self._needs = needs

    def normal(self, purpose: str) -> Tensor:
        """Fresh standard normal noise (B, ...) of a sample's shape; one stream for each `purpose`, such as
        "kl/noise"."""
        return self.normal_of(purpose, self.student.shape)

    @cached_property
    def noise(self) -> Tensor:
        """The student's input noise z ~ N(0, I), (B, ...)."""
        return self.normal("noise")

    @cached_property
    def condition(self) -> Condition:
        """The conditions of `noise`, drawn by the teacher's conditioner."""
        return self._conditioner.encode(self._conditioner.draw(self.uniform("condition"))).to(self.device)

    @cached_property
    def samples(self) -> Tensor:
        """The student's output G(z, c), (B, ...): with gradient where the student is due; needs `Samples`."""
        if self._joint:
            return self._both[0]
        with torch.set_grad_enabled(self.student_due):
            return self.student.training_samples(self.noise, self.condition, self._renoise("renoise"), self._shared())

    @cached_property
    def pair_samples(self) -> Tensor:
        """The student's output on the pairs' noise, (B, ...): to compare with `pairs.sample`; needs `PairSamples`."""
        if self._joint:
            return self._both[1]
        with torch.set_grad_enabled(self.student_due):
            return self.student.training_samples(
                self.pairs.noise, self.pairs.condition, self._renoise("pairs/renoise"), self._shared()
            )

    @property
    def _joint(self) -> bool:
        return self.student_due and {Samples, PairSamples} <= self._needs

    @cached_property
    def _both(self) -> tuple[Tensor, Tensor]:
        # One pass over both batches costs less than two passes: the same arithmetic, half the launches.
        first, second = self._renoise("renoise"), self._renoise("pairs/renoise")
        out = self.student.training_samples(
            torch.cat([self.noise, self.pairs.noise]),
            Condition.cat([self.condition, self.pairs.condition]),
            lambda k: torch.cat([first(k), second(k)]),
            self._shared(),
        )
        samples, pair_samples = out.chunk(2)
        return samples, pair_samples

    def _shared(self) -> float:
        """A uniform that all samples of the step share, on every process."""
        return self.rng.uniform("shared", self.index, [0]).item()

    def _renoise(self, purpose: str) -> Callable[[int], Tensor]:
        return lambda k: self.normal(f"{purpose}/{k}")

    def release(self) -> None:
        """Let the student's graph go after its backward pass: from here on its samples are constants."""
        self.student_due = False
        for name in ("samples", "pair_samples"):
            if name in self.__dict__:
                self.__dict__[name] = self.__dict__[name].detach()
        self.__dict__.pop("_both", None)
