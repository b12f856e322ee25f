"""The StudentGenerator role: the network that training turns into a generator."""

from __future__ import annotations

from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.sampler import OneStep, Renoise, Sampler
from distillkit.contracts.teacher import Teacher, TeacherSpec


class StudentGenerator(nn.Module):
    """Noise -> sample in a fixed, small number of network evaluations.

    Args:
        denoiser: the trainable network.
        sampler: how the denoiser is used at inference, one step at `sigma_max` by default.
        spec: the teacher's facts (shape, noise levels, classes), which the student inherits.
    """

    def __init__(self, denoiser: Denoiser, sampler: Sampler, spec: TeacherSpec) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.sampler = sampler
        self.spec = spec

    @classmethod
    def from_teacher(cls, teacher: Teacher, sampler: Sampler | None = None) -> StudentGenerator:
        """A student that starts as a copy of the teacher."""
        return cls(teacher.copy_denoiser(), sampler or OneStep(sigma=teacher.spec.sigma_max), teacher.spec)

    def training_samples(self, noise: Tensor, condition: Condition, renoise: Renoise, uniform: float) -> Tensor:
        """As `forward`, as training sees it: see `Sampler.training_samples`."""
        return self.sampler.training_samples(self.denoiser, noise, condition, renoise, uniform)

    def forward(self, noise: Tensor, condition: Condition, renoise: Renoise | None = None) -> Tensor:
        """Standard normal noise (B, C, H, W) and conditions -> samples (B, C, H, W) in data units."""
        return self.sampler(self.denoiser, noise, condition, renoise)
