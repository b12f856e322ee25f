"""Sample grids from fixed noise: flipping through them is a film of the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from distillkit.contracts.codec import Content
from distillkit.contracts.condition import Condition
from distillkit.contracts.health import Diagnostic
from distillkit.contracts.objective import Objective
from distillkit.contracts.random import SampleRNG
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher, guidance_title
from distillkit.engine.outputs import Preview
from distillkit.files import write_bytes
from distillkit.pictures import save_grid, tiles

COLUMNS, POINTS = 10, 8192
SAMPLES = 60
"""Samples of the grid that lies beside a student."""


CLIPPED = Diagnostic(
    "clipped_to_teacher",
    ok=(-1.0, 0.15),
    watch=(-1.0, 0.5),
    meaning="share of the student's decoded values beyond black and white by more than 6 grey levels, minus the "
    "teacher's from the same noise; above 0 its pictures are over-saturated, as late in runs with strong guidance: "
    "lower it, or use --guidance-rescale 0.7 where the method has it",
)
"""Of previews: seen in the samples that are drawn anyway, before they are rounded. Of the trainings of the searches on
digits that ended within 1.5 times their entry's best, 93 % were ok by these numbers."""
LIMIT = 1.05
"""Values from -1 to 1 are black to white; rounding and noise of healthy samples stay within."""


def clipped(images: Tensor) -> float:
    """The share of values of images (B, ...), -1 to 1, that lie beyond `LIMIT` and are cut off."""
    return (images.abs() > LIMIT).float().mean().item()


def shown(content: Content, samples: int = COLUMNS) -> range:
    """The samples of a picture: points are drawn as a density, which takes many."""
    return range(POINTS if content == "points" else samples)


class Previews:
    """Writes samples/step-*.png: a row each for teacher, student, and what the objectives show.

    Every column is from one noise and condition.

    Args:
        guidance: of the teacher's row, that which the student learns in.
    """

    def __init__(
        self, folder: Path, teacher: Teacher, objectives: Sequence[Objective], seed: int, guidance: float = 1.0
    ) -> None:
        self.folder, self.teacher, self.objectives, self.guidance = folder, teacher, objectives, guidance
        self.rng, self.device = SampleRNG(seed), next(teacher.denoiser.parameters(), torch.empty(0)).device
        self.rows = shown(teacher.codec.content)
        self._teacher_row: Tensor | None = None
        self._teacher_clipped: float | None = None
        self._drawn: dict[tuple[str, range], Tensor] = {}

    @torch.inference_mode()
    def __call__(self, student: StudentGenerator, step: int) -> Preview:
        """The picture's path, and how much of it is cut off."""
        noise, condition = self._noise("previews", self.rows), self._condition(self.rows)
        codec = self.teacher.codec
        if self._teacher_row is None:
            wanted = self.teacher.sample(noise, condition, guidance=self.guidance)
            self._teacher_row = codec.decode(wanted)
            self._teacher_clipped = self._clipped(wanted)
        samples = self._samples(student, "previews", self.rows)
        name = "teacher" if self.guidance == 1 else f"teacher with {guidance_title(self.guidance, self.teacher)}"
        made = {name: self._teacher_row, "student": codec.decode(samples)}
        for objective in self.objectives:
            for name, predicted in objective.previews(samples, condition, self.rng).items():
                made[name] = codec.decode(predicted)
        content = codec.content
        path = self.folder / f"step-{step:09d}.png"
        # A prompt is the same in all rows, and stands under the last.
        captions = [*[""] * ((len(made) - 1) * COLUMNS), *self._captions(self.rows)]
        save_grid(path, torch.cat([tiles(row, content) for row in made.values()]), COLUMNS, captions=captions)
        order = "from left to right" if content == "points" else "rows from top to bottom"
        write_bytes(self.folder / "README.txt", f"{order}: {', '.join(made)}\nfixed noise and conditions\n".encode())
        seen, cut = {}, self._clipped(samples)
        if cut is not None and self._teacher_clipped is not None:
            seen[CLIPPED.name] = cut - self._teacher_clipped
        return Preview(path, seen)

    def _clipped(self, samples: Tensor) -> float | None:
        """Of samples; None of points, and where the codec does not say what it rounds."""
        codec = self.teacher.codec
        images = codec.images(samples)
        shape = codec.decoded_shape(self.teacher.spec.shape)
        return None if codec.content == "points" or tuple(images.shape[1:]) != shape else clipped(images)

    @torch.inference_mode()
    def grid(self, path: Path, student: StudentGenerator) -> None:
        """A plain sample grid of the student."""
        content = self.teacher.codec.content
        rows = shown(content, SAMPLES)
        decoded = self.teacher.codec.decode(self._samples(student, "samples", rows))
        save_grid(path, tiles(decoded, content), COLUMNS, captions=self._captions(rows))

    def _captions(self, rows: range) -> list[str]:
        """The prompts of a picture's samples; points are one picture."""
        conditioner = self.teacher.conditioner
        return [] if self.teacher.codec.content == "points" else conditioner.captions(conditioner.in_turn(rows))

    def _samples(self, student: StudentGenerator, purpose: str, rows: range) -> Tensor:
        return student(self._noise(purpose, rows), self._condition(rows), lambda k: self._noise(f"{purpose}/{k}", rows))

    def _noise(self, purpose: str, rows: range) -> Tensor:
        """Drawn once: thousands of points, each from a seed of its own, take longer than a small student's pass."""
        if (purpose, rows) not in self._drawn:
            self._drawn[purpose, rows] = self.rng.normal(purpose, 0, rows, self.teacher.spec.shape).to(self.device)
        return self._drawn[purpose, rows]

    def _condition(self, rows: range) -> Condition:
        conditioner = self.teacher.conditioner
        return conditioner.encode(conditioner.in_turn(rows)).to(self.device)
