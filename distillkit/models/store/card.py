"""Cards of teachers: what is known of one before its weights are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from distillkit.contracts.source import Batches, Images
from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.contracts.text import PromptList
from distillkit.models.store.folder import fresh_teacher
from distillkit.progress import Quiet, Reporter


@dataclass(frozen=True)
class Card:
    """A teacher that can be asked for by name.

    Args:
        spec: its facts. For a published checkpoint the network's arguments are the paper's; the file's own count, and
            are checked against these.
        title: one line for people.
        aliases: other names that people type, in lower case.
        url: the published file; empty where nothing is downloaded.
        parameters: number of parameters.
        published: figures of the paper, quoted under the paper's own protocol.
        reference: address of the reference statistics that the published figure was measured against.
        sha256: of the published file, where one is known; elsewhere it is recorded at the first download.
        weight_bytes: of one weight in the published file.
        variant_of: the teacher of whose size and data it is another average, and which lists name in its place.
        training: settings of the training that made its weights, where its data come with it: `teachers train NAME`
            repeats it.
        parts: settings of the trainings of its other parts, which come before that of its network, by name and in
            their order: {"autoencoder": {"training": {...}}}.
        images: opens the data that it was trained on, where they come with it: (teacher, device) -> batches of
            `Images` in that teacher's samples and conditions.
        prompts: its own list of prompts, where one comes with it.
        folder: the diffusers pipeline that its frozen parts are read from, where it comes as one.
        default: whether it is the teacher of commands that name none.
        exact: whether its distribution is known, so that students can be checked against the truth.
    """

    spec: TeacherSpec
    title: str
    aliases: tuple[str, ...] = ()
    url: str = ""
    parameters: int = 0
    published: str = ""
    reference: str = ""
    sha256: str = ""
    weight_bytes: int = 4
    variant_of: str = ""
    training: Mapping[str, Any] | None = None
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    images: Callable[[Teacher, torch.device], Batches[Images]] | None = None
    prompts: Callable[[], PromptList] | None = None
    folder: Path | None = None
    default: bool = False
    exact: bool = False

    @property
    def name(self) -> str:
        return self.spec.name


@dataclass(frozen=True)
class TeacherOffer:
    """A value of the hook `distillkit_teachers` that says what it offers before it is loaded.

    Args:
        card: the facts.
        read: loads it; downloads are reported to its first argument, and its second gives a signal's number once one
            has come, else 0.
    """

    card: Card
    read: Callable[[Reporter, Callable[[], int]], Teacher]

    def __call__(self, reporter: Reporter | None = None, should_stop: Callable[[], int] = lambda: 0) -> Teacher:
        """The teacher, with its data where they come with it."""
        return self._with_data(self.read(reporter or Quiet(), should_stop))

    def fresh(self, seed: int) -> Teacher:
        """The same with random weights that depend on the seed alone."""
        return self._with_data(fresh_teacher(self.card.spec, seed))

    def _with_data(self, teacher: Teacher) -> Teacher:
        return with_data(teacher, self.card)


def with_data(teacher: Teacher, card: Card) -> Teacher:
    """The teacher with the data and the prompts of a card."""
    if card.prompts:
        teacher.conditioner = teacher.conditioner.with_prompts(card.prompts())
    if card.images:
        teacher.images = partial(card.images, teacher)
    return teacher
