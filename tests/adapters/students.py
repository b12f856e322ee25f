"""Students of adapters in no time: copies of a teacher whose adapters were moved, saved and loaded again."""

from __future__ import annotations

import torch

from distillkit import OneStep, StudentGenerator, load_student, load_teacher
from distillkit.contracts.adapter import AdapterConfig
from distillkit.contracts.denoiser import own_parameters
from distillkit.models.adapters import Lender, base_sha256, copying
from distillkit.students.artifact import save_student
from distillkit.students.description import describe_student

ADAPTER = AdapterConfig(rank=4, alpha=8)
"""Alpha twice the rank: a scale that is forgotten shows."""


def adapted_student(teacher, config=ADAPTER, sampler=None, seed=1, size=0.1) -> StudentGenerator:
    """A student on a loaded teacher's weights, its adapters moved."""
    with copying(teacher, Lender(base_sha256(teacher), lambda number: config)):
        student = StudentGenerator.from_teacher(teacher, sampler or OneStep())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in own_parameters(student):
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return student


def saved_student(folder, source, config=ADAPTER, sampler=None):
    """A student of the teacher in a folder, saved and loaded again."""
    teacher = load_teacher(str(source))
    student = adapted_student(teacher, config, sampler)
    description = describe_student(student, teacher, method="kd", method_package="kd 1", reference=str(source))
    save_student(folder, student, description)
    return load_student(folder)
