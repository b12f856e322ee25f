"""What the training of a pipeline's part reads: the pipeline's descriptions, and pictures with their texts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from distillkit.contracts.codec import Pixels
from distillkit.contracts.condition import Condition
from distillkit.contracts.conditioner import Conditioner, Unconditional
from distillkit.contracts.source import Batches, Images, SourceJob
from distillkit.contracts.text import PromptList
from distillkit.data.captions import captions_of, fingerprint_of
from distillkit.data.reader import ImageReader, open_files
from distillkit.data.stream import ImageStream
from distillkit.errors import UsageError
from distillkit.jobs.part import PartImages
from distillkit.jobs.teacher_config import TeacherRunConfig
from distillkit.models.diffusers.parts import PipelineParts
from distillkit.models.prompts import Prompts
from distillkit.models.store.card import Card
from distillkit.models.store.resolve import resolve
from distillkit.models.text.tokens import ClipTokens, Unread
from distillkit.registry import registry

TOKENIZED = 100_000
"""Prompts of which all tokens are made at the first step, and kept: 77 of each are 62 MB."""


@dataclass(frozen=True)
class Pipeline:
    """A pipeline of diffusers as its files describe it; no weights are read.

    Args:
        parts: where its components lie.
        conditioner: of its texts or classes.
        shape: of its pictures, (C, H, W).
    """

    parts: PipelineParts
    conditioner: Conditioner
    shape: tuple[int, ...]


def pipeline_of(config: TeacherRunConfig) -> Pipeline:
    """The pipeline that describes the part which is trained.

    Raises:
        UsageError: for a teacher that is no pipeline with an autoencoder.
        DistillkitError: when its descriptions are damaged.
    """
    name = config.like or config.name
    reference = resolve(name)
    spec = reference.spec or reference.fresh(config.seed).spec
    codec = registry().build("codecs", spec.codec) if spec.codec else Pixels()
    parts = getattr(codec, "parts", None)
    if not isinstance(parts, PipelineParts):
        raise UsageError(f"{name} is no pipeline with an autoencoder, so --part {config.part} has nothing to train")
    conditioner = registry().build("conditioners", spec.conditioner) if spec.conditioner else Unconditional()
    return Pipeline(parts, conditioner, codec.decoded_shape(spec.shape))


def part_images(config: TeacherRunConfig, pipeline: Pipeline, say: Callable[[str], None]) -> PartImages:
    """The pictures of a training, in pixels, with the tokens of their texts where the part reads them.

    Args:
        say: hears which damaged images are replaced.

    Raises:
        UsageError: when there are none, or a text encoder is to be trained and they have no texts.
        DistillkitError: when they cannot be read.
    """
    if config.data.path is None:
        card = resolve(config.name).card
        if card is None or card.images is None:
            raise UsageError(f"{config.name} brings no data; give its images: --data FILE.zip, FOLDER or hf:ORG/NAME")
        return _own_images(config, pipeline, card)
    files = open_files(config.data, SourceJob(torch.device("cpu"), say=say))
    reader = ImageReader(config.data, files, want=pipeline.shape)
    conditioner: Conditioner = Unconditional()
    if config.part == "text-encoder":
        captions = captions_of(reader.files, config.data.path)
        if captions is None:
            raise UsageError(
                f"the images in {config.data.path} have no captions and a text encoder learns from them: a .txt beside "
                "each image, a metadata.jsonl with file_name and text, or a table or data set with a column of them"
            )
        conditioner = _as_read(config, pipeline, captions)
    summary = ImageStream(reader, torch.device("cpu"), conditioner=conditioner).summary
    return PartImages(
        lambda device, batch: ImageStream(reader, device, conditioner=conditioner, batch=batch, say=say),
        config.training.batch, reader.shape, summary,
        fingerprint_of(reader.files, conditioner),
    )  # fmt: skip


def _own_images(config: TeacherRunConfig, pipeline: Pipeline, card: Card) -> PartImages:
    """What comes with a teacher: its pictures before they are latents, its prompts before they are encoded."""
    teacher = resolve(config.name).fresh(config.seed)
    shape = teacher.codec.decoded_shape(teacher.spec.shape)
    teacher.codec = Pixels()
    if card.prompts:
        teacher.conditioner = _as_read(config, pipeline, card.prompts())

    def opened(device: torch.device, batch: int) -> Batches[Images]:
        assert card.images is not None
        return card.images(copy.copy(teacher), device)

    return PartImages(opened, config.training.batch, shape, f"what comes with the teacher {config.name}")


def _as_read(config: TeacherRunConfig, pipeline: Pipeline, prompts: PromptList) -> Conditioner:
    """A conditioner of these prompts that encodes nothing."""
    if config.part != "text-encoder":
        return Prompts(encoder=Unread()).with_prompts(prompts)
    conditioner = Prompts(encoder=ClipTokens(parts=pipeline.parts)).with_prompts(prompts)
    if len(prompts) > TOKENIZED:
        return conditioner

    @cache
    def every() -> Condition:
        # In each step it would take as long as the rest of a GPU's step.
        return conditioner.encode(torch.arange(len(prompts)))

    return conditioner.with_encodings(lambda keys: every().select(keys))
