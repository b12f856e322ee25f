"""What determines a teacher's training, of one part of it or of all: defaults, a teacher's own settings, a person's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from distillkit.counts import parse_count
from distillkit.data.config import DataConfig
from distillkit.engine.config import TrainingConfig
from distillkit.errors import UsageError
from distillkit.files import slug
from distillkit.jobs.autoencoder import AUTOENCODER_TRAINING, AutoencoderConfig
from distillkit.jobs.contrastive import CONTRASTIVE_TRAINING
from distillkit.jobs.part import PartName
from distillkit.jobs.teacher_recipe import (
    EDM2_LOSS,
    EDM2_PIXELS,
    EDM2_TRAINING,
    EDM_TRAINING,
    LATENT_TRAINING,
    LossConfig,
    NetworkConfig,
)
from distillkit.models.store.resolve import cards, default_teacher, resolve
from distillkit.registry import BUILT_IN, registry
from distillkit.runs.config import EvaluationConfig
from distillkit.runs.options import option_name
from distillkit.runs.validation import ConfigFile, merge, validated

ALL, NETWORK = "all", "network"
TRAININGS: Mapping[str, Mapping[str, Any]] = {
    "autoencoder": AUTOENCODER_TRAINING,
    "text-encoder": CONTRASTIVE_TRAINING,
}
"""Of the parts beside the network, with images of one's own."""
OWN: Mapping[str, tuple[str, ...]] = {NETWORK: ("network", "loss", "evaluation"), "autoencoder": ("autoencoder",)}
"""Sections that belong to one part alone."""


class TeacherRunConfig(BaseModel):
    """Everything that determines the training of a teacher's network, or of another part of a pipeline."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(default_factory=default_teacher, pattern=r"^[\w.-]+$", description="name of the teacher")
    part: PartName = Field("network", description="what of the teacher is trained")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of weights and draws")
    like: str = Field("", description="pipeline whose part is trained anew, and whose other parts stay as they are")
    conditional: bool = Field(True, description="use the labels, where the images have them")
    licence: str = Field("", description="licence of the weights, recorded with every student")
    data: DataConfig = Field(default_factory=DataConfig)
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    autoencoder: AutoencoderConfig = Field(default_factory=AutoencoderConfig)
    training: TrainingConfig
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)


class PartsConfig(BaseModel):
    """Everything that determines a training of all parts, each on top of those before it."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[\w.-]+$", description="name of the teacher")
    parts: dict[PartName, TeacherRunConfig] = Field(min_length=1)


def asked_part(options: Mapping[str, Any], file: ConfigFile | None = None) -> str:
    """What is to be trained, `ALL` among others: by default the network, and all parts of a teacher that brings data
    for them.

    Raises:
        UsageError: for all parts with the configuration of one.
    """
    asked = merge(file.values if file else {}, options)
    if "parts" in asked:
        return ALL
    if file and options.get("part") == ALL != file.values.get("part", ALL):
        raise UsageError(f"{file.path} is of a training of one part, {file.values['part']}, not of all")
    if part := asked.get("part"):
        return str(part)
    card = None if asked.get("like") or _path(asked) else cards().get(str(asked.get("name", default_teacher())))
    return ALL if card and card.parts else NETWORK


def resolve_teacher(options: Mapping[str, Any], file: ConfigFile | None = None) -> TeacherRunConfig:
    """Defaults, then the file, then the options. Without data it repeats the training of a teacher that brings its own.

    Raises:
        UsageError: naming every bad value and the nearest valid key; for a teacher without data.
    """
    asked = merge(file.values if file else {}, options)
    part = str(asked.get("part", NETWORK))
    if asked.get("like") and options.get("network"):
        raise UsageError(f"--like {asked['like']} has a network already: leave out the options of another")
    for other, sections in OWN.items():
        if strange := [option_name((at, name)) for at in sections for name in options.get(at) or () if other != part]:
            raise UsageError(f"{', '.join(strange)}: settings of the {other}, which --part {part} does not train")
    path, name = _path(asked), str(asked.get("name", default_teacher()))
    card = cards().get(name)
    if part != NETWORK and not asked.get("like") and (path or not card or part not in card.parts):
        raise UsageError(f"--part {part} of which pipeline? Name the one that describes it: --like PIPELINE")
    if not path and (unread := [option_name(("data", each)) for each in options.get("data") or ()]):
        raise UsageError(f"{', '.join(unread)}: for images of your own, and there is no --data")
    if path:
        defaults: dict[str, Any] = {**_usual(asked, part), "name": slug(Path(path).stem)}
    else:
        own: Mapping[str, Any] = {}
        if card:
            own = {"training": card.training or {}} if part == NETWORK else card.parts.get(part, {})
        if options.get("network") or not own.get("training"):
            what = "this teacher" if part == NETWORK else f"the {part} of this teacher"
            raise UsageError(
                f"{name}: what is {what} to learn? Give its images: --data FILE.zip, FOLDER or hf:ORG/NAME"
            )
        # Repeated as it was, the training is the same to the bit; of another length, it keeps its proportions.
        other_length = "duration" in dict(asked.get("training") or {})
        defaults = {**own, "training": _for_any_duration(own["training"]) if other_length else dict(own["training"])}
    return validated(TeacherRunConfig, merge(defaults, asked), file, options)


def resolve_parts(options: Mapping[str, Any], file: ConfigFile | None = None) -> PartsConfig:
    """The training of all parts in their order. Options hold for every part that has them; a duration is that of all
    together, shared as their own durations are.

    Raises:
        UsageError: as `resolve_teacher`; for options beside a file of such a training, which is complete.
    """
    if file and "parts" in file.values:
        if more := sorted(set(options) - {"name", "part"}):
            raise UsageError(f"a training of all parts goes on as it was begun: leave out what sets {', '.join(more)}")
        return validated(PartsConfig, file.values, file, {})
    asked = merge(file.values if file else {}, options)
    typed = dict(asked.pop("training", None) or {})
    total = parse_count(typed.pop("duration", None))
    asked.pop("part", None)

    def one(part: str, **more: Any) -> TeacherRunConfig:
        others = {section for other, sections in OWN.items() if other != part for section in sections}
        kept = {name: value for name, value in asked.items() if name not in others}
        return resolve_teacher({**kept, "part": part, "training": {**typed, **more}}, None)

    names = _parts_of(asked)
    found = {part: one(part) for part in names}
    if total is not None:
        whole = sum(config.training.duration for config in found.values())
        lengths = {
            part: max(1, round(total * config.training.duration / whole)) if isinstance(total, int) else total
            for part, config in found.items()
        }
        found = {part: one(part, duration=lengths[part]) for part in names}
    first = next(iter(found.values()))
    return PartsConfig.model_validate({"name": first.name, "parts": found})


def _parts_of(asked: Mapping[str, Any]) -> list[str]:
    """The parts of a teacher that can be trained, in their order.

    Raises:
        UsageError: for one that has none beside its network.
    """
    if asked.get("like"):
        spec = resolve(str(asked["like"])).spec
        conditioner = registry().build("conditioners", spec.conditioner) if spec else None
        text = ["text-encoder"] if conditioner is not None and conditioner.takes_text else []
        return ["autoencoder", *text, NETWORK]
    name = str(asked.get("name", default_teacher()))
    card = cards().get(name)
    if not card or not card.parts:
        raise UsageError(f"--part all: {name} has no part but its network; leave it out, or name a pipeline by --like")
    return [*card.parts, NETWORK]


def _usual(asked: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The settings of a training with images of one's own: those that published networks of its kind were trained
    with."""
    if part in TRAININGS:
        return {"training": TRAININGS[part]}
    like = resolve(str(asked["like"])).spec if asked.get("like") else None
    if like and like.network.get("kind") == f"{BUILT_IN}:EDM2UNet":
        pixels = like.codec.get("kind") == f"{BUILT_IN}:Pixels"
        return {"training": EDM2_TRAINING, "loss": EDM2_PIXELS if pixels else EDM2_LOSS}
    if asked.get("like"):
        return {"training": LATENT_TRAINING}
    network = asked.get("network")
    if isinstance(network, Mapping) and network.get("arch") == "edm2":
        return {"training": EDM2_TRAINING, "loss": EDM2_PIXELS}
    return {"training": EDM_TRAINING}


def _path(asked: Mapping[str, Any]) -> str:
    data = asked.get("data")
    return str(data.get("path") or "") if isinstance(data, Mapping) else ""


def _for_any_duration(training: Mapping[str, Any]) -> dict[str, Any]:
    """A catalogue's training with its warm-up as the share of the duration that it is, for shorter ones as well."""
    share = 100 * parse_count(training.get("warmup", 0)) / parse_count(training["duration"])
    return {**training, "warmup": f"{share:.4f}%"}
