"""What weights of guided-diffusion and improved-diffusion do not say, what was published, and their teachers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from distillkit.contracts.codec import Pixels
from distillkit.contracts.conditioner import ClassLabels, Unconditional
from distillkit.contracts.teacher import TeacherSpec
from distillkit.diffusion.schedules import VPSchedule
from distillkit.errors import UsageError
from distillkit.models.build import own_part
from distillkit.models.original import Known, Original, Settings

KIND = "distillkit:ADM"
GROUPS = 32
"""Of all its normalisations."""
SIDES: Mapping[tuple[float, ...], int] = {
    (0.5, 1, 1, 2, 2, 4, 4): 512, (1, 1, 2, 2, 4, 4): 256, (1, 1, 2, 3, 4): 128, (1, 2, 3, 4): 64, (1, 2, 2, 2): 32,
}  # fmt: skip
"""Sides of pictures by the widths of levels, as both programs choose them."""

GUIDED = {"num_head_channels": 64, "noise_schedule": "linear"}
IMPROVED = {"num_heads": 4, "noise_schedule": "cosine", "diffusion_steps": 4000, "rescale_timesteps": True}
PUBLISHED: Mapping[tuple[int, int, bool], Mapping[str, Any]] = {
    (64, 3, True): {"num_head_channels": 64, "use_new_attention_order": True, "noise_schedule": "cosine"},
    (128, 2, True): {"num_heads": 4, "noise_schedule": "linear"},
    (256, 2, True): GUIDED,
    (512, 2, True): GUIDED,
    (32, 3, False): IMPROVED,
    (64, 3, False): IMPROVED,
    (256, 2, False): {"num_heads": 1, "noise_schedule": "linear"},
}
"""(side, blocks a level, whether blocks change the resolution) -> settings of the published models of that kind: those
whose blocks do are guided-diffusion's, the others improved-diffusion's. All predict a variance."""
DEFAULTS: Mapping[str, Any] = {
    "num_heads": 4, "use_new_attention_order": False, "noise_schedule": "linear", "diffusion_steps": 1000,
    "rescale_timesteps": False, "predict_xstart": False,
}  # fmt: skip
HEADS = {"num_heads", "num_head_channels"}
"""One of both says all."""


class ADMSettings(Settings):
    """By the names of guided-diffusion's own flags."""

    image_size: int = Field(ge=1, le=8192, description="side of its pictures, image_size")
    num_heads: int | None = Field(None, ge=1, le=4096)
    num_head_channels: int | None = Field(None, ge=1, le=65_536)
    use_new_attention_order: bool
    noise_schedule: Literal["linear", "cosine"]
    diffusion_steps: int = Field(ge=21, le=100_000)
    rescale_timesteps: bool
    predict_xstart: bool


@dataclass(frozen=True)
class Sizes:
    """What the names and shapes of weights say.

    Args:
        levels: those that attend, from 0, the finest.
        resample_blocks: whether blocks change the resolution, and not convolutions.
        learned: whether it predicts a variance too.
    """

    in_channels: int
    model_channels: int
    channel_mult: tuple[float, ...]
    num_blocks: int
    levels: tuple[int, ...] = ()
    classes: int = 0
    resample_blocks: bool = True
    adaptive_scale: bool = True
    learned: bool = True


def known(original: Original, sizes: Sizes) -> Iterator[Known]:
    """Settings from those that know them, the surest first."""
    said, size = original.asked.keys() & HEADS, _side(original.asked.get("image_size"))
    if (like := original.like) is not None:
        if like.network.get("kind") != KIND:
            raise UsageError(
                f"{original.path} holds weights of guided-diffusion's UNetModel, and {like.name} is of another "
                "network: name a teacher that was made of such weights, or leave --like out"
            )
        theirs = _settings_of(like)
        size = size or theirs["image_size"]
        yield f"as {like.name}", _without_heads(theirs, said)
        said = said | HEADS
    elif "image_size" not in original.asked and (side := SIDES.get(sizes.channel_mult)):
        size = side
        yield "as both programs have it with these widths", {"image_size": side}
    found = published(size, sizes) if size else DEFAULTS
    if found is not DEFAULTS:
        others = {name: value for name, value in found.items() if DEFAULTS.get(name) != value or name in HEADS}
        yield f"as published at {size} x {size}", _without_heads(others, said)
        said = said | HEADS
    yield "the program's defaults", _without_heads(DEFAULTS, said)


def _side(asked: str | None) -> int | None:
    """The size of pictures that was asked for; None for what is no number, which is refused with the other settings."""
    try:
        return TypeAdapter(int).validate_python(asked)
    except ValidationError:
        return None


def published(side: int, sizes: Sizes) -> Mapping[str, Any]:
    """Settings of the published models of a size, or the program's defaults."""
    found = PUBLISHED.get((side, sizes.num_blocks, sizes.resample_blocks)) if sizes.learned else None
    if found is None:
        return DEFAULTS
    # The one with classes was trained without.
    rescaled = {"rescale_timesteps": False} if found is IMPROVED and sizes.classes else {}
    return {**_without_heads(DEFAULTS, HEADS), **found, **rescaled}


def _without_heads(settings: Mapping[str, Any], said: set[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if not said or name not in HEADS}


def _settings_of(spec: TeacherSpec) -> dict[str, Any]:
    """The settings of a teacher that was made of such weights; the order of queries, keys and values, which is always
    the same in ours, is that of the published one of its size."""
    arguments = spec.network["arguments"]
    network, schedule = arguments["network"], arguments["schedule"]
    heads = network.get("heads")
    return {
        "image_size": spec.shape[-1],
        "num_heads": heads,
        "num_head_channels": None if heads else network.get("channels_per_head"),
        "noise_schedule": "linear" if schedule["betas"] == "linear" else "cosine",
        "diffusion_steps": schedule["steps"],
        "rescale_timesteps": arguments.get("time_scale", 1.0) != 1,
        "predict_xstart": arguments["prediction"] == "sample",
    }


def describe(name: str, sizes: Sizes, settings: ADMSettings) -> TeacherSpec:
    """The facts of a teacher of pixels."""
    side, steps = settings.image_size, settings.diffusion_steps
    network: dict[str, Any] = {
        "img_resolution": side,
        "in_channels": sizes.in_channels,
        "out_channels": sizes.in_channels,
        "label_dim": sizes.classes,
        "model_channels": sizes.model_channels,
        "channel_mult": list(sizes.channel_mult),
        "num_blocks": sizes.num_blocks,
        "attn_resolutions": [side >> level for level in sizes.levels],
        "dropout": 0.0,
        "resample_blocks": sizes.resample_blocks,
        "adaptive_scale": sizes.adaptive_scale,
        "groups": GROUPS,
        **({"heads": settings.num_heads} if settings.num_heads else {"channels_per_head": settings.num_head_channels}),
    }
    # The ends of linear betas are those of 1,000 steps, divided among as many as there are.
    linear = {"betas": "linear", "beta_start": 0.1 / steps, "beta_end": 20 / steps}
    betas = linear if settings.noise_schedule == "linear" else {"betas": "squaredcos_cap_v2"}
    schedule = VPSchedule.model_validate({"steps": steps, "clip": 1.0, "clip_noise": True, **betas})
    arguments = {
        "network": network,
        "schedule": schedule.model_dump(mode="json"),
        "prediction": "sample" if settings.predict_xstart else "epsilon",
        "time_scale": 1000 / steps if settings.rescale_timesteps else 1.0,
    }
    labels = ClassLabels(classes=sizes.classes, null_label=False) if sizes.classes else Unconditional()
    return TeacherSpec(
        name=name,
        shape=(sizes.in_channels, side, side),
        network={"kind": KIND, "arguments": arguments},
        conditioner=own_part(labels),
        codec=own_part(Pixels()),
        solver="ddim",
        solver_steps=50,
    )
