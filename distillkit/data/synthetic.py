"""Noise in the shapes of pairs and images: what plans, benchmarks and conformance checks train on."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.contracts.codec import Pixels
from distillkit.contracts.condition import Condition
from distillkit.contracts.random import Indices, SampleRNG
from distillkit.contracts.source import Images, Pairs
from distillkit.contracts.teacher import Teacher


class SyntheticImages:
    """Noise as samples (B, ...) of the teacher's shape, within [-1, 1] where they are pixels."""

    def __init__(self, teacher: Teacher, device: torch.device) -> None:
        self.teacher, self.device = teacher, device

    def batch(self, rng: SampleRNG, step: int, indices: Indices) -> Images:
        """Samples and conditions drawn by the conditioner."""
        sample = rng.normal("synthetic/sample", step, indices, self.teacher.spec.shape)
        return Images(self._in_range(sample).to(self.device), self._condition(rng, step, indices))

    def _in_range(self, sample: Tensor) -> Tensor:
        return sample.clamp(-1, 1) if isinstance(self.teacher.codec, Pixels) else sample

    def _condition(self, rng: SampleRNG, step: int, indices: Indices) -> Condition:
        keys = self.teacher.conditioner.draw(rng.uniform("synthetic/condition", step, indices))
        return self.teacher.conditioner.encode(keys.to(self.device)).to(self.device)


class SyntheticPairs:
    """Noise z with the same noise as its sample, within the range of samples, instead of the teacher's ODE's end."""

    def __init__(self, teacher: Teacher, device: torch.device) -> None:
        self.images = SyntheticImages(teacher, device)
        self.shape = teacher.spec.shape

    def batch(self, rng: SampleRNG, step: int, indices: Indices) -> Pairs:
        """Pairs (B, ...) and conditions drawn by the conditioner."""
        images = self.images.batch(rng, step, indices)
        noise = rng.normal("synthetic/sample", step, indices, self.shape)
        return Pairs(noise.to(self.images.device), images.sample, images.condition)
