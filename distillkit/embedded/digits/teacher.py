"""The embedded teacher of handwritten digits: 8 x 8 pixels, ten classes, with the data that it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from distillkit.contracts.source import Batches, Images
from distillkit.contracts.teacher import Teacher
from distillkit.data.memory import MemoryImages
from distillkit.embedded.assets import asset_path, shipped_records
from distillkit.embedded.digits.data import load_digits
from distillkit.models.store.card import Card, TeacherOffer
from distillkit.models.store.folder import read_spec, read_teacher
from distillkit.progress import Reporter

SPEC, WEIGHTS = "digits-teacher.json", "digits-teacher.safetensors"

TRAINING: Mapping[str, Any] = {
    "duration": "1.5M",
    "batch": 256,
    "lr": 3e-3,
    "lr_schedule": "cosine",
    "warmup": "25k",
    "optimizer": "adam",
    "weight_decay": 0.0,
    "ema_halflife": "100k",
}
"""The training of the shipped weights."""


def offer() -> TeacherOffer:
    """What the hook offers."""
    card = Card(
        read_spec(asset_path(SPEC)), "handwritten digits 8x8, 10 classes", parameters=479_209, training=TRAINING,
        images=serve, default=True,
    )  # fmt: skip
    return TeacherOffer(card, _read)


def serve(teacher: Teacher, device: torch.device) -> Batches[Images]:
    """All digits, with their labels, as the samples of `teacher`."""
    return MemoryImages(*load_digits(), teacher, device)


def _read(reporter: Reporter, should_stop: Callable[[], int]) -> Teacher:
    teacher = read_teacher(asset_path(SPEC), asset_path(WEIGHTS))
    teacher.records = shipped_records()
    return teacher
