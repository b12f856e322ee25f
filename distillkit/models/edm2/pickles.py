"""What EDM2's network pickles hold: the network, and the encoder of its samples, taken from inert records."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import ValidationError

from distillkit.contracts.codec import Codec, Pixels
from distillkit.contracts.conditioner import ClassLabels, Unconditional
from distillkit.contracts.teacher import TeacherSpec
from distillkit.models.build import own_part
from distillkit.models.diffusers.parts import PipelineParts
from distillkit.models.edm.pickles import arguments_of
from distillkit.models.edm2.families import STEPS, describe_network
from distillkit.models.edm2.vae import WEIGHTS, StabilityVAE
from distillkit.models.foreign.records import Array, Instance, Refused
from distillkit.reading import first_problem
from distillkit.text import short

PRECONDITIONING = "Precond"
CONSTRUCTOR = ("img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_data", "logvar_channels")
PIXELS, LATENTS = "StandardRGBEncoder", "StabilityVAEEncoder"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def find_encoder(value: Any) -> Instance | None:
    """The encoder of samples beside the network; None where the file has none."""
    encoder = value.get("encoder") if isinstance(value, Mapping) else None
    return encoder if isinstance(encoder, Instance) else None


def describe(network: Instance, encoder: Instance | None, name: str) -> tuple[TeacherSpec, tuple[str, ...]]:
    """The teacher's facts from the arguments that its constructor was called with, as the file records them, and what
    had to be assumed, for people.

    Raises:
        Refused: when they are missing, not plain values, or of an encoder that is not known.
    """
    arguments = arguments_of(network, CONSTRUCTOR)
    outer = {key: arguments.pop(key) for key in CONSTRUCTOR if key in arguments}
    try:
        resolution, channels, classes = (int(outer[key]) for key in CONSTRUCTOR[:3])
        sigma_data, logvar = float(outer.get("sigma_data", 0.5)), int(outer.get("logvar_channels", 128))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Refused(f"its network's arguments are incomplete ({error})") from error
    sizes = 0 < resolution <= 4096 and 0 < channels <= 64 and 0 <= classes <= 10**6 and 0 < sigma_data < 10**6
    if not sizes or not 0 < logvar <= 65_536:
        raise Refused(f"its network, {channels} x {resolution} x {resolution}, cannot be built")
    codec, notes = _codec(encoder, channels)
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


def _codec(encoder: Instance | None, channels: int) -> tuple[Codec, tuple[str, ...]]:
    if encoder is None:
        latent = channels == StabilityVAE().latent_channels
        what = f"latents of {WEIGHTS}, as EDM2's are" if latent else "pixels"
        return StabilityVAE() if latent else Pixels(), (f"no encoder of its samples in the file: taken for {what}",)
    if encoder.class_name == PIXELS:
        return Pixels(), ()
    if encoder.class_name != LATENTS:
        raise Refused(
            f"its samples are made by an encoder of class {encoder.class_name[:80]}; known are {PIXELS} and {LATENTS}"
        )
    source = encoder.state.get("vae_name")
    if not (isinstance(source, str) and _REPOSITORY.fullmatch(source)) or ".." in source:
        raise Refused(
            f"its encoder takes the autoencoder {short(source)}, which is no ORG/REPO of the hub; save its weights "
            "alone, and say by --like whose network they are for"
        )
    codec = _stability_vae(source, _numbers(encoder, "scale", channels), _numbers(encoder, "bias", channels))
    return codec, (f"latents of hf:{source}, which is read when it is first needed",)


def _stability_vae(source: str, scale: tuple[float, ...], bias: tuple[float, ...]) -> Codec:
    """latents = scale z + bias, in the words of `StabilityVAE`: (z - mean) / std * scaling."""
    scaling = StabilityVAE.model_fields["scaling"].default
    try:
        return StabilityVAE(
            parts=PipelineParts(source=f"hf:{source}"),
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
