"""The embedded text-to-image teacher: a latent model in diffusers' format, read as anyone's pipeline is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from distillkit.contracts.random import Indices, SampleRNG
from distillkit.contracts.source import Images
from distillkit.contracts.teacher import Teacher
from distillkit.contracts.text import PromptList
from distillkit.embedded.assets import asset_folder, asset_path, shipped_records
from distillkit.embedded.shapes.world import codes, draw_all, parse, shipped_prompts
from distillkit.models.diffusers.folder import read_teacher
from distillkit.models.store.card import Card, TeacherOffer
from distillkit.models.store.folder import read_spec
from distillkit.progress import Reporter

FOLDER, SPEC = Path(__file__).parent / "pipeline", "shapes-teacher.json"
PARAMETERS = 1_100_100


def offer() -> TeacherOffer:
    """What the hook offers."""
    card = Card(
        read_spec(asset_path(SPEC)), "text to image: coloured shapes, 32x32", parameters=PARAMETERS,
        images=DrawnImages, prompts=shipped_list, folder=FOLDER,
    )  # fmt: skip
    return TeacherOffer(card, _read)


def shipped_list() -> PromptList:
    """The sentences that ship with it."""
    return PromptList.of(tuple(shipped_prompts()), "the sentences of the teacher shapes")


class DrawnImages:
    """Pictures of the teacher's prompts, drawn when they are asked for and encoded by its autoencoder."""

    def __init__(self, teacher: Teacher, device: torch.device) -> None:
        self.teacher, self.device = teacher, device

    def batch(self, rng: SampleRNG, step: int, indices: Indices) -> Images:
        """Samples (B, ...) and their conditions; each depends on (seed, step, index) alone."""
        conditioner = self.teacher.conditioner
        keys = conditioner.draw(rng.uniform("images", step, indices))
        described = codes([parse(text) for text in conditioner.names(keys)])
        seeds = rng.integers("images/drawing", step, indices, 2**31).tolist()
        drawn = torch.cat(
            [draw_all(row[None], torch.Generator().manual_seed(n)) for row, n in zip(described, seeds, strict=True)]
        )
        mean, deviation = self.teacher.codec.distribution(drawn.to(self.device))
        if deviation is not None:
            # As its training saw them: the decoder ignores this noise, a discriminator would not.
            mean = mean + deviation * rng.normal("images/latent", step, indices, mean.shape[1:]).to(self.device)
        return Images(mean, conditioner.encode(keys.to(self.device)).to(self.device))


def _read(reporter: Reporter, should_stop: Callable[[], int]) -> Teacher:
    teacher = read_teacher(asset_folder("shapes/pipeline"), read_spec(asset_path(SPEC)))
    teacher.records = shipped_records()
    return teacher
