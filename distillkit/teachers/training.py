"""Training a teacher: denoising score matching on real images, as one more recipe for the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.objective import Objective
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.sampler import OneStep
from distillkit.contracts.step import Step
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.diffusion.schedules import edm_loss_weight
from distillkit.networks.build import build_denoiser

DIGITS_TRAINING: Mapping[str, Any] = {
    "duration": "1.5M",
    "batch": 256,
    "lr": 3e-3,
    "lr_schedule": "cosine",
    "warmup": "25k",
    "optimizer": "adam",
    "weight_decay": 0.0,
    "ema_halflife": "100k",
    "log_every": "25k",
    "checkpoint_every": "100k",
    "evaluate_every": "500k",
    "sample_every": "500k",
}


class DenoisingScoreMatching(Objective):
    """E lambda(sigma) |D(x0 + sigma n; sigma, c) - x0|^2, ln sigma ~ N(-1.2, 1.2^2) (Karras et al. 2022, Eq. 2).

    Labels are dropped at a rate of `label_dropout`, so that the teacher can be guided.
    """

    needs = ("images",)

    def __init__(self, *, label_dropout: float = 0.1, mean: float = -1.2, std: float = 1.2) -> None:
        super().__init__()
        self.label_dropout, self.mean, self.std = label_dropout, mean, std

    def __call__(self, step: Step) -> Tensor:
        images = step.images
        # The normal quantile of a uniform: one scalar draw per sample needs no generator of its own.
        level = torch.special.ndtri(step.uniform("sigma").clamp(1e-12, 1 - 1e-12))
        sigma = (level * self.std + self.mean).exp().float().to(step.device)
        condition = images.condition
        if condition.labels is not None and self.label_dropout:
            dropped = (step.uniform("label dropout") < self.label_dropout).to(step.device)
            condition = Condition(labels=torch.where(dropped, -1, condition.labels))
        s = sigma.view(-1, 1, 1, 1)
        denoised = step.student.denoiser(images.sample + s * step.normal("noise"), sigma, condition)
        weight = edm_loss_weight(s, step.student.spec.sigma_data)
        return (weight * (denoised - images.sample).square()).mean()


def fresh_teacher(spec: TeacherSpec, seed: int) -> Teacher:
    """A teacher with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser: Denoiser = build_denoiser(spec.network)
    return Teacher(denoiser, spec)


def teacher_recipe(teacher: Teacher) -> Recipe:
    """Train a copy of `teacher` on real images."""
    student = StudentGenerator.from_teacher(teacher, OneStep(sigma=teacher.spec.sigma_max))
    return Recipe(student, [DenoisingScoreMatching()])
