"""diffusers models as teachers, from a local folder or the hub: UNet2DModel with a DDPM, DDIM or EDM scheduler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import sha256
from distillkit.models.foreign.read import read_foreign
from distillkit.models.foreign.records import Refused, is_state_dict, load_tensors
from distillkit.models.diffusers.unet2d import sigmas_of
from distillkit.models.store.folder import denoiser_with

VARIANCE_PRESERVING = frozenset(
    f"{name}Scheduler"
    for name in (
        "DDPM", "DDIM", "DDPMParallel", "DDIMParallel", "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep",
        "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "UniPCMultistep", "DEISMultistep",
    )
)  # fmt: skip
EDM = frozenset({"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"})
WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "pytorch_model.bin")
PATTERNS = [
    "teacher.json", "model.safetensors", "model_index.json", "config.json", "scheduler_config.json",
    "unet/config.json", "scheduler/scheduler_config.json",
    *WEIGHT_FILES, *(f"unet/{name}" for name in WEIGHT_FILES),
]  # fmt: skip


def is_diffusers_folder(folder: Path) -> bool:
    return (folder / "model_index.json").is_file() or (folder / "config.json").is_file()


def snapshot(repository: str) -> Path:
    """The files of `ORG/REPO[@REVISION]` that a teacher is made of, in the hub's own cache.

    Raises:
        UsageError: for a malformed name.
        DistillkitError: when they are not in the cache and cannot be had.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = repository.partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise UsageError(f"hf:{repository}: write it as hf:ORG/REPO or hf:ORG/REPO@REVISION")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=PATTERNS))
    except Exception as error:  # the hub's client raises many kinds
        raise DistillkitError(
            f"hf:{repository} is not in the hub's cache and cannot be had ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}). Check the name, HF_TOKEN for a private repository, and HF_HUB_OFFLINE; or "
            "give a local folder."
        ) from error


def read_teacher(folder: Path) -> Teacher:
    """A teacher from a diffusers pipeline folder (`unet/`, `scheduler/`) or a flat one (`config.json`).

    Raises:
        UsageError: for a model, scheduler or option that cannot be turned into a sigma denoiser; names it.
        DistillkitError: when a file is damaged or does not fit.
    """
    model = folder / "unet" if (folder / "unet" / "config.json").is_file() else folder
    scheduler = next(
        (p for p in (folder / "scheduler", folder, model) if (p / "scheduler_config.json").is_file()), folder
    )
    config = _json(model / "config.json")
    if (index := folder / "model_index.json").is_file() and "vae" in _json(index):
        raise UsageError(f"{folder} is a latent model (it has a VAE); pixel models of class UNet2DModel can be loaded")
    if config.get("_class_name") != "UNet2DModel":
        raise UsageError(f"{folder} holds a {config.get('_class_name', 'model')}; what can be loaded is UNet2DModel")
    if config.get("class_embed_type") is not None:
        raise UsageError(f"{folder}: class_embed_type {config['class_embed_type']!r} is not supported")
    noise = noise_of(_json(scheduler / "scheduler_config.json"), str(scheduler))
    size = config.get("sample_size")
    height, width = (size, size) if isinstance(size, int) else tuple(size or (0, 0))
    if not height or not width:
        raise UsageError(f"{folder}: its config.json does not say the sample_size")
    weights = next((model / name for name in WEIGHT_FILES if (model / name).is_file()), None)
    if weights is None:
        raise UsageError(f"{model} has no weights; one of {', '.join(WEIGHT_FILES)} is needed")
    levels = sigmas_of(noise) if noise["convention"] == "vp" else None
    finite = levels[levels.isfinite()] if levels is not None else None
    spec = TeacherSpec(
        name=_name(folder),
        shape=(int(config["in_channels"]), height, width),
        num_classes=config.get("num_class_embeds") or 0,
        null_label=False,
        sigma_min=0.002 if finite is None else float(finite[0]),
        sigma_max=80.0 if finite is None else float(finite[-1]),
        sigma_data=float(noise.get("sigma_data", 0.5)),
        solver_steps=18 if max(height, width) <= 32 else 40,
        network={
            "class": "UNet2DModel",
            "arguments": {key: value for key, value in config.items() if not key.startswith("_")},
            "noise": noise,
        },
        weights_sha256=sha256(weights),
        source=str(folder),
    )
    state = {f"model.unet.{name}": value for name, value in _weights(weights).items()}
    return Teacher(denoiser_with(spec, state, str(weights)), spec)


def _name(folder: Path) -> str:
    """A local folder's name; a hub snapshot (models--ORG--REPO/snapshots/COMMIT) is called REPO."""
    return folder.parents[1].name.rpartition("--")[2] if folder.parent.name == "snapshots" else folder.name


def noise_of(scheduler: dict[str, Any], where: str) -> dict[str, Any]:
    """What a scheduler's configuration says of noise levels and prediction, as `build_diffusers_denoiser` reads it.

    Raises:
        UsageError: for a scheduler of another convention.
    """
    kind = scheduler.get("_class_name", "")
    prediction = scheduler.get("prediction_type", "epsilon")
    if kind in EDM:
        return {"convention": "edm", "prediction": prediction, "sigma_data": scheduler.get("sigma_data", 0.5)}
    if kind not in VARIANCE_PRESERVING:
        known = ", ".join(sorted(VARIANCE_PRESERVING | EDM))
        raise UsageError(f"{where}: the scheduler {kind or 'without a class'} is not supported; known: {known}")
    if scheduler.get("trained_betas") is not None:
        raise UsageError(f"{where}: trained_betas are not supported")
    return {
        "convention": "vp",
        "prediction": prediction,
        "steps": int(scheduler.get("num_train_timesteps", 1000)),
        "schedule": scheduler.get("beta_schedule", "linear"),
        "beta_start": float(scheduler.get("beta_start", 0.0001)),
        "beta_end": float(scheduler.get("beta_end", 0.02)),
        "zero_terminal_snr": bool(scheduler.get("rescale_betas_zero_snr", False)),
    }


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
