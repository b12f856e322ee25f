"""The StudentGenerator role: the network that training turns into a generator."""

from __future__ import annotations

from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.sampler import OneStep, Renoise, Sampler
from distillkit.contracts.schedule import Schedule
from distillkit.contracts.teacher import Teacher


class StudentGenerator(nn.Module):
    """Noise -> sample in a fixed, small number of network evaluations.

    Args:
        denoiser: the trainable network: a copy of the teacher's, or any other that `build_denoiser` can make anew.
        sampler: how the denoiser is used at inference.
        shape: of a sample, without the batch.
    """

    def __init__(self, denoiser: Denoiser, sampler: Sampler, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.sampler = sampler
        self.shape = tuple(shape)

    @classmethod
    def from_teacher(cls, teacher: Teacher, sampler: Sampler | None = None) -> StudentGenerator:
        """A student that starts as a copy of the teacher; one step from the largest time by default."""
        return cls(teacher.copy_denoiser(), sampler or OneStep(), teacher.spec.shape)

    @property
    def schedule(self) -> Schedule:
        """The denoiser's noise schedule."""
        return self.denoiser.schedule

    def training_samples(self, noise: Tensor, condition: Condition, renoise: Renoise, uniform: float) -> Tensor:
        """As `forward`, as training sees it: see `Sampler.training_samples`."""
        return self.sampler.training_samples(self.denoiser, noise, condition, renoise, uniform)

    def forward(self, noise: Tensor, condition: Condition, renoise: Renoise | None = None) -> Tensor:
        """Standard normal noise (B, ...) and conditions -> samples (B, ...)."""
        return self.sampler(self.denoiser, noise, condition, renoise)
