"""Folders of diffusers as teachers: UNet2DModel with a DDPM, DDIM, EDM or flow matching scheduler."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distillkit.contracts.codec import Pixels
from distillkit.contracts.conditioner import ClassLabels, Conditioner, Unconditional
from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.errors import UsageError
from distillkit.models.bounds import UNet2DSizes
from distillkit.models.build import own_part
from distillkit.models.diffusers.scheduler import Noise, noise_of
from distillkit.models.diffusers.weights import read_weights
from distillkit.models.store.folder import denoiser_with, teacher_with
from distillkit.names import name_from
from distillkit.reading import Missing, read_mapping, validated
from distillkit.text import short

log = logging.getLogger(__name__)

CONFIGURATION = [
    "teacher.json", "model_index.json", "config.json", "scheduler_config.json", "unet/config.json",
    "scheduler/scheduler_config.json",
]  # fmt: skip
"""The files of a repository that describe a teacher."""
DESCRIPTIONS = ("model_index.json", "config.json", "unet/config.json")


def is_diffusers_folder(folder: Path) -> bool:
    return any((folder / name).is_file() for name in DESCRIPTIONS)


def describe(folder: Path) -> TeacherSpec:
    """The facts of a diffusers pipeline folder (`unet/`, `scheduler/`) or a flat one (`config.json`), without weights.

    Raises:
        UsageError: for a model, scheduler or option that cannot be turned into a denoiser; names it.
        DistillkitError: when a file is damaged.
    """
    model = _model_folder(folder)
    config = _json(model / "config.json")
    index = _json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    if "vae" in index:
        raise UsageError(f"{folder} is a latent model (it has a VAE); pixel models of class UNet2DModel can be loaded")
    if config.get("_class_name") != "UNet2DModel":
        kind = config.get("_class_name", "model without a class")
        raise UsageError(
            f"{folder} holds a {kind if isinstance(kind, str) else short(kind)}; what can be loaded is UNet2DModel"
        )
    if config.get("class_embed_type") is not None:
        raise UsageError(f"{folder}: class_embed_type {short(config['class_embed_type'])} is not supported")
    sizes = validated(UNet2DSizes, config, str(model / "config.json"))
    if not sizes.sample_size:
        raise UsageError(f"{folder}: its config.json does not say the sample_size")
    height, width = (sizes.sample_size,) * 2 if isinstance(sizes.sample_size, int) else sizes.sample_size
    noise = _noise(folder, model)
    return TeacherSpec(
        name=name_from(folder_name(folder)),
        shape=(sizes.in_channels, height, width),
        network={
            "kind": "distillkit:UNet2DModel",
            "arguments": {
                "network": {key: value for key, value in config.items() if not key.startswith("_")},
                "schedule": noise.schedule.model_dump(mode="json"),
                "prediction": noise.prediction,
                "sigma_data": noise.sigma_data,
            },
        },
        conditioner=own_part(_conditioner(config, index)),
        codec=own_part(Pixels()),
        solver_steps=18 if max(height, width) <= 32 else 40,
        source=str(folder),
    )


def read_teacher(folder: Path, spec: TeacherSpec) -> Teacher:
    """The teacher of such a folder, which `describe` has described.

    Raises:
        UsageError: when its weights are missing.
        DistillkitError: when they are damaged, refused, or do not fit.
    """
    model = _model_folder(folder)
    tensors, digest, note = read_weights(model)
    if note:
        log.warning("reading %s; they are used in float32", note)
    complete = spec.model_copy(update={"weights_sha256": digest})
    state = {f"model.unet.{name}": value for name, value in tensors.items()}
    return teacher_with(complete, denoiser_with(spec, state, str(model)))


def folder_name(folder: Path) -> str:
    """A local folder's name; a hub snapshot (models--ORG--REPO/snapshots/COMMIT) is called REPO."""
    folder = folder.absolute()
    return folder.parents[1].name.rpartition("--")[2] if folder.parent.name == "snapshots" else folder.name


def _model_folder(folder: Path) -> Path:
    return folder / "unet" if (folder / "unet" / "config.json").is_file() else folder


def _conditioner(config: Mapping[str, Any], index: Mapping[str, Any]) -> Conditioner:
    """Class labels where the network embeds some, with names where the pipeline has them; never a null label."""
    classes = config.get("num_class_embeds") or 0
    if not classes:
        return Unconditional()
    called = index.get("id2label")
    called = called if isinstance(called, Mapping) else {}
    names = tuple(name_from(str(called[str(n)])) if str(n) in called else "" for n in range(classes))
    return ClassLabels(classes=classes, null_label=False, class_names=names if all(names) else ())


def _noise(folder: Path, model: Path) -> Noise:
    """The noise of the scheduler's configuration; for checkpoints of a training, that of the pipeline around them."""
    own = (folder / "scheduler", folder, model)
    around = [above / "scheduler" for above in (folder.absolute().parent, folder.absolute().parent.parent)]
    for place in (*own, *around):
        path = place / "scheduler_config.json"
        if path.is_file():
            if place not in own:
                log.warning("%s has no scheduler of its own; taking that of the pipeline around it, %s", folder, path)
            return noise_of(_json(path), str(path))
    raise UsageError(
        f"{folder} does not say which noise its model was trained with: scheduler_config.json is missing. Checkpoints "
        f"of a training have none: copy the pipeline's scheduler folder to {folder / 'scheduler'}"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_mapping(path)
    except Missing as error:
        raise UsageError(f"{path} is missing") from error
