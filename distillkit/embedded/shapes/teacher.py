"""The embedded text-to-image teacher: a latent model in diffusers' format, read as anyone's pipeline is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit.contracts.conditioner import Conditioner
from distillkit.contracts.random import Indices, SampleRNG
from distillkit.contracts.source import Images
from distillkit.contracts.teacher import Teacher
from distillkit.contracts.text import PromptList
from distillkit.data.latent_samples import latents_of
from distillkit.embedded.assets import asset_folder, asset_path, shipped_records
from distillkit.embedded.shapes.world import DRAWS, codes, drawn, scene_of, shipped_prompts
from distillkit.models.diffusers.folder import read_teacher
from distillkit.models.store.card import Card, TeacherOffer
from distillkit.models.store.folder import read_spec
from distillkit.progress import Reporter

FOLDER, SPEC = Path(__file__).parent / "pipeline", "shapes-teacher.json"
PARAMETERS = 1_100_100

TRAINING: Mapping[str, Any] = {
    "duration": "7.45M",
    "batch": 1024,
    "lr": 2e-3,
    "lr_schedule": "cosine",
    "warmup": "224k",
    "beta2": 0.99,
    "weight_decay": 0.0,
    "clip_grad_norm": 1.0,
    "ema_halflife": "1.42M",
}
"""As the shipped network was trained, there together with its text encoder, which stays as it is here, and on all
sentences instead of those that ship."""
PARTS: Mapping[str, Mapping[str, Any]] = {
    "autoencoder": {
        "autoencoder": {"kl_weight": 0.012},
        "training": {
            **TRAINING, "duration": "1.35M", "batch": 256, "lr": 1.5e-3, "warmup": "41k", "ema_halflife": "177k",
        },
    },
    "text-encoder": {
        "training": {
            **TRAINING, "duration": "512k", "batch": 256, "lr": 1e-3, "warmup": "15k", "beta2": 0.98,
            "ema_halflife": "20k",
        },
    },
}  # fmt: skip
"""The autoencoder as the shipped one was trained. The text encoder learns from pictures, as CLIP does, so that the
network's training finds it ready: its settings are a choice, tried as far as docs/text-to-image.md says."""


def offer() -> TeacherOffer:
    """What the hook offers."""
    card = Card(
        read_spec(asset_path(SPEC)), "text to image: coloured shapes, 32x32", parameters=PARAMETERS,
        training=TRAINING, parts=PARTS, images=DrawnImages, prompts=shipped_list, folder=FOLDER,
    )  # fmt: skip
    return TeacherOffer(card, _read)


def shipped_list() -> PromptList:
    """The sentences that ship with it."""
    return PromptList.of(tuple(shipped_prompts()), "the sentences of the teacher shapes")


class DrawnImages:
    """Pictures of the teacher's prompts, drawn when they are asked for and encoded by its autoencoder."""

    def __init__(self, teacher: Teacher, device: torch.device) -> None:
        self.teacher, self.device = teacher, device
        self._described: tuple[Conditioner, Tensor] | None = None

    def batch(self, rng: SampleRNG, step: int, indices: Indices) -> Images:
        """Samples (B, ...) and their conditions; each depends on (seed, step, index) alone."""
        conditioner = self.teacher.conditioner
        keys = conditioner.draw(rng.uniform("images", step, indices))
        described = self._codes(conditioner)[keys]
        uniform = torch.stack([rng.uniform(f"images/drawing/{k}", step, indices).float() for k in range(DRAWS)], 1)
        pictures = drawn(described.to(self.device), uniform.to(self.device))
        sample = latents_of(*self.teacher.codec.distribution(pictures), rng, step, indices)
        return Images(sample, conditioner.encode(keys.to(self.device)).to(self.device))

    def _codes(self, conditioner: Conditioner) -> Tensor:
        """What the pictures of every prompt show, read once: reading 1,024 in each step would take 25 ms."""
        if self._described is None or self._described[0] is not conditioner:
            texts = conditioner.names(torch.arange(conditioner.count))
            self._described = conditioner, codes([scene_of(text) for text in texts])
        return self._described[1]


def _read(reporter: Reporter, should_stop: Callable[[], int]) -> Teacher:
    teacher = read_teacher(asset_folder("shapes/pipeline"), read_spec(asset_path(SPEC)))
    teacher.records = shipped_records()
    return teacher
