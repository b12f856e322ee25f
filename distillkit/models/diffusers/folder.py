"""Folders of diffusers as teachers: which family they are of, and their weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.errors import DistillkitError, UsageError
from distillkit.models.build import build_denoiser
from distillkit.models.diffusers.attention import renamed_attention
from distillkit.models.diffusers.family import Described, Family, Pipeline
from distillkit.models.diffusers.options import PLAIN, PipelineConfig
from distillkit.models.diffusers.weights import read_weights
from distillkit.models.precision import check_dtype, in_dtype
from distillkit.models.store.folder import denoiser_with, teacher_with
from distillkit.models.weightless import weights_left_out
from distillkit.names import name_from
from distillkit.reading import read_mapping
from distillkit.registry import blaming, registry
from distillkit.text import short

log = logging.getLogger(__name__)

COMPONENTS = ("unet", "transformer")
CONFIGURATION = [
    "teacher.json", "model_index.json", "config.json", "scheduler_config.json", "scheduler/scheduler_config.json",
    *(f"{component}/config.json" for component in COMPONENTS),
    # What a latent or a text model is made of.
    "vae/config.json", "text_encoder*/config.json",
]  # fmt: skip
"""The files of a repository that describe a teacher."""
DESCRIPTIONS = ("model_index.json", "config.json", *(f"{component}/config.json" for component in COMPONENTS))


def network_prefix(component: str) -> str:
    """Before the names of a pipeline's network's weights in a denoiser's: the module has the component's name."""
    return f"model.{component}."


def is_diffusers_folder(folder: Path) -> bool:
    return any((folder / name).is_file() for name in DESCRIPTIONS)


def describe(folder: Path, asked: PipelineConfig = PLAIN) -> TeacherSpec:
    """The facts of a diffusers pipeline folder (`unet/` or `transformer/`, `scheduler/`) or a flat one (`config.json`),
    without weights.

    Args:
        asked: what is asked of it beside its files; its name says so.

    Raises:
        UsageError: for a model, scheduler or option that cannot be turned into a denoiser; names it.
        DistillkitError: when a file is damaged.
    """
    pipeline = pipeline_at(folder, asked)
    described, known = _described(pipeline), registry()
    _check_followed(described, pipeline)
    return TeacherSpec(
        name=name_from(f"{folder_name(folder)}{asked.suffix}"),
        shape=described.shape,
        network=dict(described.network),
        conditioner=known.describe("conditioners", described.conditioner),
        codec=known.describe("codecs", described.codec),
        solver=described.solver,
        solver_steps=described.solver_steps,
        source=pipeline.source,
    )


def _described(pipeline: Pipeline) -> Described:
    kind = pipeline.config.get("_class_name")
    kind = kind if isinstance(kind, str) else short(kind) if kind else "model without a class"
    families = registry().named("families")
    if kind not in families:
        raise UsageError(f"{pipeline.folder} holds a {kind}; what can be loaded is {', '.join(sorted(families))}")
    offer = families[kind]
    family: Family = offer.value
    with blaming(f"the family {kind}", offer.origin, f"cannot describe {pipeline.folder}"):
        return family(pipeline)


def _check_followed(described: Described, pipeline: Pipeline) -> None:
    """Refuse what was asked for and a family did not follow."""
    kind, asked = pipeline.config.get("_class_name"), pipeline.asked
    if asked.sides and described.codec.decoded_shape(described.shape)[-2:] != asked.sides:
        raise UsageError(f"{asked.options[0]}: teachers of a {kind} have the size that their files say")
    encoder = getattr(described.conditioner, "encoder", None)
    if asked.embedded_guidance is not None and getattr(encoder, "guidance", None) != asked.embedded_guidance:
        raise UsageError(
            f"{asked.options[-1]}: {pipeline.folder} embeds no guidance in its network, as FLUX.1-dev does; --guidance "
            "guides a teacher by a second prediction"
        )


def read_teacher(folder: Path, spec: TeacherSpec, dtype: torch.dtype = torch.float32) -> Teacher:
    """The teacher of such a folder, which `describe` has described, its network's weights in `dtype`. Where weights are
    left out (`without_weights`) their files are not looked at, and the spec has no hash of them.

    Raises:
        UsageError: when its weights are missing, or `dtype` is none of those that networks take.
        DistillkitError: when they are damaged, refused, or do not fit.
    """
    check_dtype(dtype)
    pipeline = pipeline_at(folder)
    teacher = in_dtype(_with_network(pipeline, spec, dtype), dtype)
    teacher.conditioner, teacher.codec = teacher.conditioner.hashed(), teacher.codec.hashed()
    return teacher


def _with_network(pipeline: Pipeline, spec: TeacherSpec, dtype: torch.dtype) -> Teacher:
    if weights_left_out():
        with at(pipeline.network):
            return teacher_with(spec, build_denoiser(spec.network))
    tensors, digest, note = read_weights(pipeline.network, dtype)
    if note:
        log.warning("reading %s; they are used in %s", note, str(dtype).removeprefix("torch."))
    prefix = _described(pipeline).prefix
    state = {f"{prefix}{name}": value for name, value in tensors.items()}
    with at(pipeline.network):
        denoiser = denoiser_with(spec, state, str(pipeline.network), rename=renamed_attention)
        return teacher_with(spec.model_copy(update={"weights_sha256": digest}), denoiser)


@contextmanager
def at(place: Path) -> Iterator[None]:
    """Name the place in errors that do not."""
    try:
        yield
    except DistillkitError as error:
        if str(place) in str(error):
            raise
        raise type(error)(f"{place}: {error}") from error


def pipeline_at(folder: Path, asked: PipelineConfig = PLAIN) -> Pipeline:
    """A folder, read as far as its configurations go.

    Raises:
        UsageError: when it does not say which noise its model was trained with.
    """
    network = _network_folder(folder)
    return Pipeline(folder, network, source_of(folder), _noise_path(folder, network), asked)


def source_of(folder: Path) -> str:
    """By which a folder is found again: `hf:ORG/REPO@COMMIT` of a snapshot in the hub's cache, or its path."""
    whole = folder.absolute()
    if whole.parent.name == "snapshots" and whole.parents[1].name.startswith("models--"):
        return f"hf:{whole.parents[1].name.removeprefix('models--').replace('--', '/', 1)}@{whole.name}"
    return str(whole)


def folder_name(folder: Path) -> str:
    """A local folder's name; a hub snapshot (models--ORG--REPO/snapshots/COMMIT) is called REPO."""
    folder = folder.absolute()
    return folder.parents[1].name.rpartition("--")[2] if folder.parent.name == "snapshots" else folder.name


def _network_folder(folder: Path) -> Path:
    for component in COMPONENTS:
        if (folder / component / "config.json").is_file():
            return folder / component
    # A pipeline whose network's folder is missing holds no network either.
    if (index := folder / "model_index.json").is_file() and not (folder / "config.json").is_file():
        listed = [name for name in COMPONENTS if name in read_mapping(index)]
        raise UsageError(
            f"{folder}/model_index.json names a {listed[0]}, and {folder / listed[0] / 'config.json'} is not there"
            if listed
            else f"{folder} holds a pipeline without a network ({' or '.join(COMPONENTS)})"
        )
    return folder


def _noise_path(folder: Path, network: Path) -> Path:
    """The scheduler's configuration; for checkpoints of a training, that of the pipeline around them."""
    own = (folder / "scheduler", folder, network)
    around = [above / "scheduler" for above in (folder.absolute().parent, folder.absolute().parent.parent)]
    for place in (*own, *around):
        path = place / "scheduler_config.json"
        if path.is_file():
            if place not in own:
                log.warning("%s has no scheduler of its own; taking that of the pipeline around it, %s", folder, path)
            return path
    raise UsageError(
        f"{folder} does not say which noise its model was trained with: scheduler_config.json is missing. Checkpoints "
        f"of a training have none: copy the pipeline's scheduler folder to {folder / 'scheduler'}"
    )
