"""What EDM2's network pickles hold: the network, and the encoder of its samples, taken from inert records."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from distillkit.contracts.codec import Codec, Pixels
from distillkit.contracts.conditioner import ClassLabels, Unconditional
from distillkit.contracts.teacher import TeacherSpec
from distillkit.errors import UsageError
from distillkit.models.build import own_part
from distillkit.models.diffusers import hub
from distillkit.models.diffusers.parts import PipelineParts
from distillkit.models.diffusers.vae import autoencoder_of
from distillkit.models.edm.pickles import arguments_of
from distillkit.models.edm2.families import STEPS, describe_network
from distillkit.models.edm2.vae import StabilityVAE
from distillkit.models.foreign.records import Array, Instance, Refused
from distillkit.reading import first_problem
from distillkit.text import short

SHAPE, REST = ("img_resolution", "img_channels", "label_dim"), ("use_fp16", "sigma_data", "logvar_channels")
OF_TRAINING = ("force_normalization", "use_gan")
"""Arguments of SiD's networks that concern their training alone."""
PRECONDITIONINGS: Mapping[str, tuple[str, ...]] = {
    "Precond": (*SHAPE, *REST),
    "EDM_2_Precond_Generator": (*SHAPE, *OF_TRAINING, *REST),
}
"""Class of the network, EDM2's and that of SiD's one-step generators, which learn no uncertainty -> the names of its
arguments."""
VAE = "vae"
"""The one setting that a person may give: where the autoencoder is."""
PIXELS, LATENTS = "StandardRGBEncoder", "StabilityVAEEncoder"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def find_encoder(value: Any) -> Instance | None:
    """The encoder of samples beside the network; None where the file has none."""
    encoder = value.get("encoder") if isinstance(value, Mapping) else None
    return encoder if isinstance(encoder, Instance) else None


def describe(
    network: Instance, encoder: Instance | None, name: str, vae: str | None = None
) -> tuple[TeacherSpec, tuple[str, ...]]:
    """The teacher's facts from the arguments that its constructor was called with, as the file records them, and what
    had to be assumed, for people.

    Args:
        encoder: of the network's samples, as the file has it.
        vae: a folder or `hf:ORG/REPO` of the autoencoder in the place of the one that the encoder names.

    Raises:
        UsageError: for an autoencoder that is not there, of other latents, or where samples are pixels.
        Refused: when they are missing, not plain values, or of an encoder that is not known.
    """
    constructor = PRECONDITIONINGS[network.class_name]
    arguments = arguments_of(network, constructor)
    outer = {key: arguments.pop(key) for key in constructor if key in arguments}
    try:
        resolution, channels, classes = (int(outer[key]) for key in SHAPE)
        sigma_data, logvar = float(outer.get("sigma_data", 0.5)), int(outer.get("logvar_channels", 128))
        logvar = 0 if OF_TRAINING[0] in constructor else logvar
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Refused(f"its network's arguments are incomplete ({error})") from error
    sizes = 0 < resolution <= 4096 and 0 < channels <= 64 and 0 <= classes <= 10**6 and 0 < sigma_data < 10**6
    if not sizes or not 0 <= logvar <= 65_536:
        raise Refused(f"its network, {channels} x {resolution} x {resolution}, cannot be built")
    codec, notes = _codec(encoder, channels, vae)
    spec = TeacherSpec(
        name=name,
        shape=(channels, resolution, resolution),
        network=describe_network(
            resolution, channels, classes, arguments, sigma_data=sigma_data, logvar_channels=logvar
        ),
        # Its models were trained without dropping labels: others guide them.
        conditioner=own_part(ClassLabels(classes=classes, null_label=False) if classes else Unconditional()),
        codec=own_part(codec),
        solver_steps=STEPS,
    )
    return spec, notes


def _codec(encoder: Instance | None, channels: int, vae: str | None) -> tuple[Codec, tuple[str, ...]]:
    kind, notes = PIXELS if encoder is None else encoder.class_name, tuple[str, ...]()
    if encoder is None:
        kind = LATENTS if channels == StabilityVAE().latent_channels else PIXELS
        what = "latents, as EDM2's are" if kind == LATENTS else "pixels"
        notes = (f"no encoder of its samples in the file: taken for {what}",)
    if kind == PIXELS:
        if vae is not None:
            raise UsageError(f"--set {VAE}={vae}: its samples are pixels, and no autoencoder makes them")
        return Pixels(), notes
    if kind != LATENTS:
        raise Refused(f"its samples are made by an encoder of class {kind[:80]}; known are {PIXELS} and {LATENTS}")
    codec = StabilityVAE()
    if encoder is not None:
        codec = _standardised(_numbers(encoder, "scale", channels), _numbers(encoder, "bias", channels))
        if vae is None:
            codec = codec.model_copy(update={"parts": PipelineParts(source=_repository(encoder))})
    if vae is not None:
        codec = _of_weights(codec, vae)
    return codec, (*notes, f"latents of the autoencoder {codec.parts.source}, which is read when it is first needed")


def _repository(encoder: Instance) -> str:
    source = encoder.state.get("vae_name")
    if not (isinstance(source, str) and _REPOSITORY.fullmatch(source)) or ".." in source:
        raise Refused(
            f"its encoder takes the autoencoder {short(source)}, which is no ORG/REPO of the hub: name its folder by "
            f"--set {VAE}=FOLDER"
        )
    return f"{hub.PREFIX}{source}"


def _of_weights(codec: StabilityVAE, vae: str) -> StabilityVAE:
    """The same with the autoencoder of a folder or a repository."""
    if vae.startswith(hub.PREFIX):
        hub.parts(vae)
        return codec.model_copy(update={"parts": PipelineParts(source=vae)})
    path = Path(vae).expanduser()
    if not path.is_dir():
        raise UsageError(f"--set {VAE}={vae}: there is no such folder; write hf:ORG/REPO or a folder")
    found = autoencoder_of(PipelineParts(source=str(path.absolute()))).hashed()
    if found.latent_channels != codec.latent_channels:
        raise UsageError(
            f"--set {VAE}={vae}: its latents have {found.latent_channels} channels, and the network's samples "
            f"{codec.latent_channels}"
        )
    return codec.model_copy(update={"parts": found.parts, "factor": found.factor, "channels": found.channels})


def _standardised(scale: tuple[float, ...], bias: tuple[float, ...]) -> StabilityVAE:
    """latents = scale z + bias, in the words of `StabilityVAE`: (z - mean) / std * scaling."""
    scaling = StabilityVAE.model_fields["scaling"].default
    try:
        return StabilityVAE(
            latent_channels=len(scale),
            # The file's numbers are rounded to float32; the paper's have fewer digits.
            means=tuple(float(f"{-b / a:.6g}") for a, b in zip(scale, bias, strict=True)),
            stds=tuple(float(f"{scaling / a:.6g}") for a in scale),
        )
    except ValidationError as error:
        raise Refused(f"its encoder: {first_problem(error)}") from error
    except (ZeroDivisionError, OverflowError) as error:
        raise Refused("its encoder's scale is zero") from error


def _numbers(encoder: Instance, name: str, channels: int) -> tuple[float, ...]:
    """An array of one number a channel."""
    value = encoder.state.get(name)
    array = value.value if isinstance(value, Array) else None
    if array is None or array.shape != (channels,) or array.dtype.kind != "f" or not np.isfinite(array).all():
        raise Refused(f"its encoder's {name} is not one finite number for each of the {channels} channels")
    return tuple(map(float, array))
