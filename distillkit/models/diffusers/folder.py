"""Folders of diffusers as teachers: UNet2DModel with a DDPM, DDIM, EDM or flow matching scheduler."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from distillkit.contracts.codec import Pixels
from distillkit.contracts.conditioner import ClassLabels, Conditioner, Unconditional
from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import sha256
from distillkit.models.build import own_part
from distillkit.models.diffusers.scheduler import noise_of
from distillkit.models.foreign.read import read_foreign
from distillkit.models.foreign.records import Refused, is_state_dict, load_tensors
from distillkit.models.store.folder import denoiser_with, teacher_with

WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "pytorch_model.bin")
CONFIGURATION = [
    "teacher.json", "model_index.json", "config.json", "scheduler_config.json", "unet/config.json",
    "scheduler/scheduler_config.json",
]  # fmt: skip
"""The files of a repository that describe a teacher."""
WEIGHTS = ["model.safetensors", *WEIGHT_FILES, *(f"unet/{name}" for name in WEIGHT_FILES)]
"""The files of a repository that hold a teacher's weights."""


def is_diffusers_folder(folder: Path) -> bool:
    return (folder / "model_index.json").is_file() or (folder / "config.json").is_file()


def describe(folder: Path) -> TeacherSpec:
    """The facts of a diffusers pipeline folder (`unet/`, `scheduler/`) or a flat one (`config.json`), without weights.

    Raises:
        UsageError: for a model, scheduler or option that cannot be turned into a denoiser; names it.
        DistillkitError: when a file is damaged.
    """
    model = _model_folder(folder)
    scheduler = next(
        (p for p in (folder / "scheduler", folder, model) if (p / "scheduler_config.json").is_file()), folder
    )
    config = _json(model / "config.json")
    index = _json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    if "vae" in index:
        raise UsageError(f"{folder} is a latent model (it has a VAE); pixel models of class UNet2DModel can be loaded")
    if config.get("_class_name") != "UNet2DModel":
        raise UsageError(f"{folder} holds a {config.get('_class_name', 'model')}; what can be loaded is UNet2DModel")
    if config.get("class_embed_type") is not None:
        raise UsageError(f"{folder}: class_embed_type {config['class_embed_type']!r} is not supported")
    noise = noise_of(_json(scheduler / "scheduler_config.json"), str(scheduler / "scheduler_config.json"))
    size = config.get("sample_size")
    height, width = (size, size) if isinstance(size, int) else tuple(size or (0, 0))
    if not height or not width:
        raise UsageError(f"{folder}: its config.json does not say the sample_size")
    return TeacherSpec(
        name=folder_name(folder),
        shape=(int(config["in_channels"]), height, width),
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
    weights = next((model / name for name in WEIGHT_FILES if (model / name).is_file()), None)
    if weights is None:
        raise UsageError(f"{model} has no weights; one of {', '.join(WEIGHT_FILES)} is needed")
    state = {f"model.unet.{name}": value for name, value in _weights(weights).items()}
    complete = spec.model_copy(update={"weights_sha256": sha256(weights)})
    return teacher_with(complete, denoiser_with(spec, state, str(weights)))


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
    called = index.get("id2label") or {}
    names = tuple(str(called.get(str(number), "")) for number in range(classes))
    return ClassLabels(classes=classes, null_label=False, class_names=names if all(names) else ())


def _weights(path: Path) -> dict[str, Tensor]:
    foreign = read_foreign(path)
    if not is_state_dict(foreign.value):
        raise Refused(f"{path}: refused: it is not a state dict. Nothing in the file was run.")
    tensors = load_tensors({str(name): tensor for name, tensor in foreign.value.items()}, 2 * foreign.size)
    return {name: tensor.float() for name, tensor in tensors.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise DistillkitError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise DistillkitError(f"{path} is not a mapping")
    return value
