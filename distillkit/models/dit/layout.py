"""Weights of DiT's and SiT's own code, with their autoencoder.

Both have the same names and shapes: which of both they are has to be said, by the file's own record of its training, by
a teacher of the kind, or by whoever converts them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from distillkit.contracts.conditioner import ClassLabels
from distillkit.contracts.teacher import TeacherSpec
from distillkit.diffusion.schedules import FlowSchedule, VPSchedule
from distillkit.errors import DistillkitError, UsageError
from distillkit.models.build import build_denoiser, own_part
from distillkit.models.diffusers import hub
from distillkit.models.diffusers.parts import PipelineParts
from distillkit.models.diffusers.vae import AutoencoderKL, autoencoder_of
from distillkit.models.original import Known, Original, Read, Settings, settled
from distillkit.models.store.folder import check_fit

HEADS = {1152: 16, 1024: 16, 768: 12, 384: 6}
"""Heads of the published widths: XL, L, B and S."""
AUTOENCODERS = {"ema": "hf:stabilityai/sd-vae-ft-ema", "mse": "hf:stabilityai/sd-vae-ft-mse"}
"""By what both programs call them."""
FACTOR, LATENT_CHANNELS = 8, 4
SIGNS = (
    "x_embedder.proj.weight", "t_embedder.mlp.0.weight", "y_embedder.embedding_table.weight",
    "final_layer.linear.weight",
)  # fmt: skip
"""Names that all such weights have."""
VARIANCE = ("final_layer.linear.weight", "final_layer.linear.bias")


class DiTSettings(Settings):
    """By the names of both programs' own options."""

    model: Literal["DiT", "SiT"] = Field(description="model, DiT or SiT, which have the same names and shapes")
    num_heads: int = Field(ge=1, le=4096, description="number of heads")
    num_classes: int = Field(ge=1, le=1_000_000, description="number of classes")
    vae: str = Field("ema", min_length=1, max_length=4096, description="autoencoder")
    path_type: Literal["Linear"] = "Linear"
    prediction: Literal["velocity"] = "velocity"


def read_dit(original: Original) -> Read:
    """The teacher of weights of DiT's or SiT's own code.

    Raises:
        UsageError: for a setting that has to be said, is unknown, or does not fit the weights; for an autoencoder that
            is not there.
        DistillkitError: for weights that are damaged.
    """
    shapes = _shapes(original)
    settings, note = settled(DiTSettings, original, _known(original, shapes))
    rows, learned = shapes.pop("rows"), shapes.pop("learned")
    if rows not in (settings.num_classes, settings.num_classes + 1):
        raise UsageError(
            f"{original.path} has {rows:,} labels: those of {settings.num_classes:,} classes are as many, or one more "
            "for none"
        )
    shapes |= {"num_heads": settings.num_heads, "label_dim": settings.num_classes}
    shapes["null_label"] = rows > settings.num_classes
    if shapes["hidden_size"] % settings.num_heads:
        raise UsageError(
            f"{original.path}: its {shapes['hidden_size']} channels do not divide into {settings.num_heads} heads"
        )
    codec = codec_of(settings.vae, shapes["in_channels"])
    spec = describe(original.name, settings.model, shapes, codec)
    with torch.device("meta"):
        denoiser = build_denoiser(spec.network)
    expected = {name.removeprefix("model."): value for name, value in denoiser.state_dict().items()}
    if learned:
        expected |= {name: torch.cat([expected[name]] * 2) for name in VARIANCE}
    check_fit(expected, original.state, str(original.path))
    state = {f"model.{name}": value for name, value in original.state.items()}
    for name in VARIANCE if learned else ():
        state[f"model.{name}"] = _without_variance(original.state[name], shapes["in_channels"])
    count = sum(p.numel() for p in denoiser.parameters())
    return Read(spec, state, tuple(filter(None, _notes(settings, shapes, codec, count, note, learned=learned))))


def _shapes(original: Original) -> dict[str, Any]:
    """What names and shapes say.

    Raises:
        DistillkitError: for weights that are no such network's.
    """
    width, channels, patch, _ = original.shape("x_embedder.proj.weight", 4)
    tokens = original.shape("pos_embed", 3)[1]
    out = original.shape("final_layer.linear.weight", 2)[0]
    side, outputs = math.isqrt(tokens), patch * patch * channels
    if side * side != tokens or out not in (outputs, 2 * outputs):
        raise DistillkitError(
            f"{original.path} has {tokens:,} places and predicts {out:,} numbers for each: latents of {channels} "
            f"channels in patches of {patch} have a square number of places, and {outputs:,} or, with a variance, "
            f"{2 * outputs:,}"
        )
    return {
        "img_resolution": side * patch,
        "patch_size": patch,
        "in_channels": channels,
        "hidden_size": width,
        "depth": len({name.split(".")[1] for name in original.state if name.startswith("blocks.")}),
        "mlp_width": original.shape("blocks.0.mlp.fc1.weight", 2)[0],
        "rows": original.shape("y_embedder.embedding_table.weight", 2)[0],
        "learned": out != outputs,
    }


def _known(original: Original, shapes: Mapping[str, Any]) -> Iterator[Known]:
    """Settings from those that know them, the surest first."""
    if original.record:
        yield "its own record of the training", _recorded(original.record)
    if (like := original.like) is not None:
        kind = str(like.network.get("kind", "")).rpartition(":")[2]
        if kind not in ("DiT", "SiT"):
            raise UsageError(
                f"{original.path} holds weights of DiT's or SiT's own code, and {like.name} is of another network: "
                "name a teacher that was made of such weights, such as dit-xl2-256 or sit-xl2-256"
            )
        network = like.network["arguments"]["network"]
        alike = network["hidden_size"] == shapes["hidden_size"]
        yield (
            f"as {like.name}",
            {
                "model": kind,
                "num_heads": network["num_heads"] if alike else None,
                "vae": like.codec.get("parts", {}).get("source"),
            },
        )
    width = shapes["hidden_size"]
    yield f"as published with {width:,} channels", {"num_heads": HEADS.get(width)}
    yield "all but one of its labels, which stands for none", {"num_classes": max(shapes["rows"] - 1, 1)}
    yield "that of the papers' figures", {"vae": "ema"}


def _recorded(record: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from the arguments of a training that a checkpoint keeps."""
    name = str(record.get("model", "")).partition("-")[0]
    kind = "SiT" if "path_type" in record else name if name in ("DiT", "SiT") else None
    others = ("num_classes", *(("path_type", "prediction") if kind == "SiT" else ()))
    # A file does not choose what else is read or fetched.
    vae = record.get("vae")
    return {
        "model": kind,
        **{other: record.get(other) for other in others},
        "vae": vae if vae in AUTOENCODERS else None,
    }


def codec_of(vae: str, channels: int) -> AutoencoderKL:
    """The autoencoder of latents of so many channels: "ema" and "mse" are Stable Diffusion's, fine-tuned, whose facts
    are known without them; a folder or a repository is another.

    Raises:
        UsageError: for one that is not there, or has latents of other channels.
        DistillkitError: when its configuration is damaged.
    """
    source = AUTOENCODERS.get(vae, vae)
    if source.startswith(hub.PREFIX):
        hub.parts(source)
        codec = AutoencoderKL(parts=PipelineParts(source=source), factor=FACTOR, latent_channels=LATENT_CHANNELS)
    else:
        path = Path(source).expanduser()
        if not path.is_dir():
            raise UsageError(f"--set vae={vae}: there is no such folder; write ema, mse, hf:ORG/REPO or a folder")
        codec = autoencoder_of(PipelineParts(source=str(path.absolute()))).hashed()
    if codec.latent_channels != channels:
        raise UsageError(
            f"the autoencoder {source} has latents of {codec.latent_channels} channels, and the network takes "
            f"{channels}: --set vae=FOLDER names another"
        )
    return codec


def describe(name: str, model: Literal["DiT", "SiT"], network: Mapping[str, Any], codec: AutoencoderKL) -> TeacherSpec:
    """The facts of a teacher of latents.

    Args:
        network: arguments of `DiT`.
    """
    schedule = VPSchedule() if model == "DiT" else FlowSchedule()
    arguments: dict[str, Any] = {"network": dict(network), "schedule": schedule.model_dump(mode="json")}
    if model == "DiT":
        arguments["prediction"] = "epsilon"
    side = network["img_resolution"]
    classes = ClassLabels(classes=network["label_dim"], null_label=network["null_label"])
    return TeacherSpec(
        name=name,
        shape=(network["in_channels"], side, side),
        network={"kind": f"distillkit:{model}", "arguments": arguments},
        conditioner=own_part(classes),
        codec=own_part(codec),
        solver="ddim" if model == "DiT" else "heun",
        solver_steps=50 if model == "DiT" else 25,
    )


def _without_variance(value: Tensor, channels: int) -> Tensor:
    """Rows (places, 2 C) -> (places, C) of the last layer."""
    return value.unflatten(0, (-1, 2 * channels))[:, :channels].flatten(0, 1)


def _notes(
    settings: DiTSettings, shapes: Mapping[str, Any], codec: AutoencoderKL, count: int, note: str, *, learned: bool
) -> Iterator[str]:
    side, under = shapes["img_resolution"], "betas" if settings.model == "DiT" else "the linear interpolant"
    yield (
        f"{settings.model} of latents {shapes['in_channels']} x {side} x {side} under {under}, "
        f"{settings.num_classes:,} classes{' and none' if shapes['null_label'] else ''}, {count:,} parameters: "
        f"{shapes['depth']} blocks of {shapes['hidden_size']} channels, patches of {shapes['patch_size']}"
    )
    yield note
    if learned:
        yield "left out: the second half of what it predicts, a variance" + (
            "" if settings.model == "DiT" else ", which SiT does not use"
        )
    if shapes["null_label"]:
        yield "guidance is of all channels; the program's own sampling guides the first three"
    place = codec.parts.source
    when = "fetched when it is first needed" if place.startswith(hub.PREFIX) else "read when it is first needed"
    yield f"its latents are decoded by {place}, {when}"
