"""The report's pictures: samples of every generator from the same noise and conditions."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from distillkit.evaluation.generator import Candidate, Generator
from distillkit.evaluation.measure import Measure
from distillkit.evaluation.pipeline import fitted
from distillkit.evaluation.sampling import Tally, inputs
from distillkit.files import slug
from distillkit.jobs.previews import shown
from distillkit.pictures import reach, reduced, save_grid, tiles

COLUMNS, SAMPLES = 5, 20
"""Few enough to be large."""
AT_ONCE = 4


class Sheets:
    """Makes the pictures of a benchmark.

    Args:
        measure: whose first samples are shown.
        teacher: as it is pictured; the frame around points is its own in every picture.
    """

    def __init__(self, measure: Measure, teacher: Generator, device: torch.device) -> None:
        self.measure, self.teacher, self.device = measure, teacher, device

    def write(self, path: Path, generator: Candidate) -> None:
        """A sheet of a generator's samples."""
        made, captions = self._samples(generator)
        points = generator.content == "points"
        pictures = reduced(tiles(made, generator.content, self._frame if points else None))
        save_grid(path, pictures, min(COLUMNS, len(pictures)), captions=[] if points else captions)

    @cached_property
    def _frame(self) -> float:
        """How far points reach: whichever picture is made first, it is what the teacher's samples take."""
        return reach(self._samples(self.teacher)[0])

    @torch.inference_mode()
    def _samples(self, generator: Candidate) -> tuple[Tensor, list[str]]:
        """Decoded samples, and what their conditions say."""
        if not isinstance(generator, Generator):
            return self._drawn(generator)
        samples, content = fitted(generator, self.measure).protocol.samples, generator.content
        noise, keys, seeds = inputs(samples, shown(content, SAMPLES), generator.shape, generator.conditioner)
        condition = generator.conditioner.encode(keys).to(self.device)
        return generator.generate(noise.to(self.device), condition, seeds), generator.conditioner.captions(keys)

    def _drawn(self, candidate: Candidate) -> tuple[Tensor, list[str]]:
        """The same of what draws its samples itself; few at a time, as they may be large."""
        count, prompts = len(shown(candidate.content, SAMPLES)), self.measure.prompts
        batches = [range(start, min(start + AT_ONCE, count)) for start in range(0, count, AT_ONCE)]
        made = torch.cat([part.cpu() for part in candidate.draw(self.measure, batches, self.device, Tally())])
        return made, [prompts[index % len(prompts)] if prompts else "" for index in range(count)]


def sheet(name: str) -> str:
    """Where a generator's picture is in the benchmark's folder."""
    return str(Path("grid") / f"{slug(name)}.png")
