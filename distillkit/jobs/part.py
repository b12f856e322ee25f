"""A part of a pipeline in training, such as its autoencoder or its text encoder: what the job asks of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.learner import Learner
from distillkit.contracts.random import SampleRNG
from distillkit.contracts.source import Batches, Images
from distillkit.engine.config import TrainingConfig
from distillkit.engine.outputs import Evaluation
from distillkit.models.diffusers.parts import PipelineParts
from distillkit.models.diffusers.write import Replaced

PartName = Literal["network", "autoencoder", "text-encoder"]

HELD, LOOKED_AT, HELD_VALUES = 1000, 200, 2**28
"""Pictures that a part is measured on in the end, of these on the way, and the most numbers in all."""
HELD_SEED = 2**62 + 7
"""Of their draw, which no training takes."""
AT_ONCE = 2**18
"""Numbers in the pictures of one pass without gradients."""


@dataclass(frozen=True)
class PartImages:
    """The pictures that a part is trained on.

    Args:
        open: device, and how many samples a batch has -> batches of `Images` in pixels, (B, C, H, W) in [-1, 1], with a
            reader of its own each time.
        batch: of the training.
        shape: of a picture, (C, H, W).
        summary: one line for people.
        fingerprint: of the files; "" for pictures that come with a teacher.
    """

    open: Callable[[torch.device, int], Batches[Images]]
    batch: int
    shape: tuple[int, ...]
    summary: str
    fingerprint: str = ""

    def held(self) -> Images:
        """What a part is measured on, on the CPU: drawn as the training's pictures are, by another seed."""
        size = torch.Size(self.shape).numel()
        count, at_once = max(2, min(HELD, HELD_VALUES // size)), max(1, AT_ONCE // size)
        opened, rng = self.open(torch.device("cpu"), count), SampleRNG(HELD_SEED)
        starts = range(0, count, at_once)
        made = [opened.batch(rng, k, range(low, min(low + at_once, count))) for k, low in enumerate(starts)]
        return Images(torch.cat([each.sample for each in made]), Condition.cat([each.condition for each in made]))


class Part(ABC):
    """A part of a pipeline in training.

    Args:
        parts: of the pipeline that describes it; no weights of it are read.

    Attributes:
        name: as people call it.
        component: its folder in the pipeline.
        learner: what is trained; its random weights depend on the seed alone.
    """

    name: PartName
    component: str
    learner: Learner

    def __init__(self, parts: PipelineParts) -> None:
        self.parts = parts

    @abstractmethod
    def check(self, training: TrainingConfig, shape: tuple[int, ...], processes: int) -> None:
        """Refuse settings or pictures of a shape (C, H, W) that it cannot be trained with, on so many processes.

        Raises:
            UsageError: naming the first.
        """

    @abstractmethod
    def figures(self, learner: Learner, held: Images) -> dict[str, float]:
        """What a learner does with pictures that are held for it, by label. Less is better of the first, by which
        checkpoints are compared."""

    @abstractmethod
    def replaced(self, learner: Learner, held: Images) -> Replaced:
        """What the pipeline's component becomes."""

    def rows(self, learner: Learner, held: Images) -> Mapping[str, Tensor]:
        """Rows of pictures (N, C, H, W) uint8 that show a learner at work; none where there is nothing to see."""
        return {}

    def evaluation(self, learner: Learner, held: Images) -> Evaluation:
        """The first figure of some of the pictures, as the engine logs it."""
        some = Images(held.sample[:LOOKED_AT], held.condition.select(slice(LOOKED_AT)))
        label, value = next(iter(self.figures(learner, some).items()))
        return Evaluation(label, value, None, len(some.sample))


def in_passes(samples: Tensor) -> tuple[Tensor, ...]:
    """Pictures (N, C, H, W) in parts that take one pass each."""
    return samples.split(max(1, AT_ONCE // samples[0].numel()))
