"""Sample grids from fixed noise: flipping through them is a film of the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from distillkit.contracts.objective import Objective
from distillkit.contracts.random import SampleRNG
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher
from distillkit.embedded.mixture.protocol import picture
from distillkit.evaluation.sampling import balanced_labels
from distillkit.pictures import save_grid
from distillkit.jobs.scores import student_pixels, teacher_pixels

COLUMNS, POINTS = 10, 8192


class Previews:
    """Writes samples/step-*.png: a row each for teacher, student, and what the objectives show, column by column
    from the same noise and label."""

    def __init__(
        self, folder: Path, teacher: Teacher, objectives: Sequence[Objective], rng: SampleRNG, device: torch.device
    ) -> None:
        self.folder, self.teacher, self.objectives, self.rng = folder, teacher, objectives, rng
        spec = teacher.spec
        count = COLUMNS if spec.is_image else POINTS
        self.seeds = list(range(count))
        self.noise = rng.normal("previews", 0, self.seeds, spec.shape).to(device)
        self.condition = balanced_labels(range(count), spec.num_classes).to(device)
        self._teacher_row: Tensor | None = None

    @torch.inference_mode()
    def __call__(self, student: StudentGenerator, step: int) -> None:
        if self._teacher_row is None:
            solve = teacher_pixels(self.teacher, self.teacher.spec.solver_steps)
            self._teacher_row = solve(self.noise, self.condition, self.seeds)
        samples = student(
            self.noise,
            self.condition,
            lambda k: self.rng.normal(f"previews/{k}", 0, self.seeds, self.noise.shape[1:]).to(self.noise.device),
        )
        rows = {"teacher": self._teacher_row, "student": self.teacher.decode(samples)}
        for objective in self.objectives:
            for name, images in objective.previews(samples, self.condition, self.rng).items():
                rows[name] = self.teacher.decode(images)
        tiles = torch.cat([drawn(row) for row in rows.values()])
        save_grid(self.folder / f"step-{step:09d}.png", tiles, COLUMNS)
        legend = self.folder / "README.txt"
        if not legend.exists():
            order = "rows from top to bottom" if self.teacher.spec.is_image else "from left to right"
            legend.write_text(f"{order}: {', '.join(rows)}\nfixed noise and labels\n")

    def grid(self, path: Path, student: StudentGenerator) -> None:
        """A plain sample grid of the student."""
        count = 60 if student.spec.is_image else POINTS
        seeds = list(range(count))
        noise = self.rng.normal("samples", 0, seeds, self.noise.shape[1:]).to(self.noise.device)
        condition = balanced_labels(range(count), self.teacher.spec.num_classes).to(self.noise.device)
        with torch.inference_mode():
            save_grid(path, drawn(student_pixels(student, self.teacher)(noise, condition, seeds)), COLUMNS)


def drawn(made: Tensor) -> Tensor:
    """Pixels as they are; points (N, 2, 1, 1) as one picture of their density, (1, 1, H, W) uint8."""
    return made if made.dtype == torch.uint8 else picture(made.flatten(1).cpu())[None]
