"""What the objectives and learners of one training step share, computed once and lazily."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.random import Indices, SampleRNG
from distillkit.contracts.student import StudentGenerator


@dataclass(frozen=True)
class Pairs:
    """Noise-image pairs of the teacher's ODE: noise z ~ N(0, I) and sample y, both (B, C, H, W), and conditions."""

    noise: Tensor
    sample: Tensor
    condition: Condition


@dataclass(frozen=True)
class Images:
    """Real images (B, C, H, W) in [-1, 1] and their conditions."""

    sample: Tensor
    condition: Condition


class PairSource(Protocol):
    def batch(self, rng: SampleRNG, step: int, indices: Indices) -> Pairs: ...


class ImageSource(Protocol):
    def batch(self, rng: SampleRNG, step: int, indices: Indices) -> Images: ...


class Step:
    """One training step as seen by objectives and learners, on one process and one micro-batch.

    Every random draw depends on the run's seed, the step and the sample's index in the total batch, so it does
    not matter how many processes or micro-batches share the work.

    Args:
        index: number of the step, from 0.
        indices: the samples' places in the total batch.
        student: the generator in training.
        draw_condition: (B,) uniforms -> conditions, the teacher's.
        rng: the run's random draws.
        device: where tensors are to be.
        student_due: whether the student is updated in this step.
        needs: what the recipe declares to read; see `Objective.needs`.
        pairs, images: opened sources, or None.
    """

    def __init__(
        self,
        *,
        index: int,
        indices: Indices,
        student: StudentGenerator,
        draw_condition: Callable[[Tensor], Condition],
        rng: SampleRNG,
        device: torch.device,
        student_due: bool = True,
        needs: frozenset[str] = frozenset(),
        pairs: PairSource | None = None,
        images: ImageSource | None = None,
    ) -> None:
        self.index, self.indices, self.student = index, indices, student
        self.student_due = student_due
        self.rng, self.device = rng, device
        self._draw_condition = draw_condition
        self._needs = needs
        self._pairs, self._images = pairs, images
        self._logged: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.indices)

    def normal(self, purpose: str) -> Tensor:
        """Fresh standard normal noise (B, C, H, W); one stream for each `purpose`, such as "kl/noise"."""
        return self.rng.normal(purpose, self.index, self.indices, self.student.spec.shape).to(
            self.device, non_blocking=True
        )

    def uniform(self, purpose: str) -> Tensor:
        """Fresh uniforms (B,) float64 in [0, 1) on the CPU; one stream for each `purpose`."""
        return self.rng.uniform(purpose, self.index, self.indices)

    def drawn_from(self, values: Tensor, purpose: str) -> Tensor:
        """One of `values` (N,) for each sample, evenly drawn, (B,); one stream for each `purpose`."""
        return values[(self.uniform(purpose) * len(values)).long()].to(self.device)

    def clean(self, source: str) -> Pairs | Images:
        """Clean samples with their conditions: "images", or the teacher's own, "pairs"; needs that source."""
        return self.pairs if source == "pairs" else self.images

    @cached_property
    def noise(self) -> Tensor:
        """The student's input noise z ~ N(0, I), (B, C, H, W)."""
        return self.normal("noise")

    @cached_property
    def condition(self) -> Condition:
        """The conditions of `noise`, drawn by the teacher's rule."""
        return self._draw_condition(self.uniform("condition")).to(self.device)

    @cached_property
    def pairs(self) -> Pairs:
        """A batch of the teacher's noise-image pairs; needs "pairs"."""
        if self._pairs is None:
            raise RuntimeError('step.pairs is read but no objective or learner declares needs = ("pairs",)')
        return self._pairs.batch(self.rng, self.index, self.indices)

    @cached_property
    def images(self) -> Images:
        """A batch of real images; needs "images"."""
        if self._images is None:
            raise RuntimeError('step.images is read but no objective or learner declares needs = ("images",)')
        return self._images.batch(self.rng, self.index, self.indices)

    @cached_property
    def samples(self) -> Tensor:
        """The student's output G(z, c), (B, C, H, W): with gradient where the student is due."""
        if self._joint:
            return self._both[0]
        with torch.set_grad_enabled(self.student_due):
            return self.student.training_samples(self.noise, self.condition, self._renoise("renoise"), self._shared())

    @cached_property
    def pair_samples(self) -> Tensor:
        """The student's output on the pairs' noise, (B, C, H, W): to compare with `pairs.sample`."""
        if self._joint:
            return self._both[1]
        with torch.set_grad_enabled(self.student_due):
            return self.student.training_samples(
                self.pairs.noise, self.pairs.condition, self._renoise("pairs/renoise"), self._shared()
            )

    @property
    def _joint(self) -> bool:
        return self.student_due and {"samples", "pair_samples"} <= self._needs

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

    def log(self, name: str, value: Tensor) -> None:
        """Record a scalar tensor; kept on the device and averaged over the logging interval."""
        self._logged[name] = value.detach()

    @property
    def logged(self) -> Mapping[str, Tensor]:
        return self._logged
