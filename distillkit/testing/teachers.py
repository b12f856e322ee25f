"""Small teachers of every kind that a method may meet, with random weights: milliseconds on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from distillkit.contracts.codec import Codec, Pixels, Points
from distillkit.contracts.conditioner import ClassLabels, Conditioner
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.source import Images
from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.models.build import build_denoiser
from distillkit.registry import registry
from distillkit.testing.parts import SmallLatents, SmallPrompts

SPREAD = 0.1
"""Fresh networks answer zero everywhere; noise on all weights makes them answer something."""


def conditional() -> Teacher:
    """Ten classes, 8 x 8 pixels, EDM's preconditioning and schedule."""
    network = {
        "img_resolution": 8, "in_channels": 1, "out_channels": 1, "label_dim": 10, "model_channels": 8,
        "channel_mult": [1], "channel_mult_emb": 2, "num_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    description = {"kind": "distillkit:DhariwalUNet", "arguments": {"network": network}}
    return _teacher("class-conditional", (1, 8, 8), description, ClassLabels(classes=10))


def smallest() -> Teacher:
    """Three classes, 8 x 8 pixels, EDM's schedule, and the cheapest network: for checks that ask it very often."""
    return _teacher("smallest", (1, 8, 8), _small(1, 2, classes=3), ClassLabels(classes=3))


def unconditional() -> Teacher:
    """8 x 8 pixels without classes: predicted v on a schedule of betas that ends in pure noise."""
    schedule = {"kind": "vp", "steps": 100, "zero_terminal_snr": True}
    return _teacher("unconditional", (1, 8, 8), _small(1, 2, prediction="v_prediction", schedule=schedule))


def text_to_latent() -> Teacher:
    """Latents (4, 8, 8) from prompts, decoded to images (3, 16, 16): Stable Diffusion's network and schedule, small."""
    network = {
        "block_out_channels": [8, 16], "layers_per_block": 1, "sample_size": 8, "in_channels": 4, "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "norm_num_groups": 4, "cross_attention_dim": 4,
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "attention_head_dim": 2,
    }  # fmt: skip
    schedule = {"kind": "vp", "betas": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "offset": 1}
    arguments = {"network": network, "schedule": schedule, "prediction": "epsilon"}
    description = {"kind": "distillkit:UNet2DConditionModel", "arguments": arguments}
    return _teacher("text-to-latent", (4, 8, 8), description, SmallPrompts(), SmallLatents())


def magnitude_preserving() -> Teacher:
    """Three classes, 8 x 8 pixels, EDM2's network: attention, and weights that every update must leave normalised."""
    network = {
        "img_resolution": 8, "in_channels": 1, "out_channels": 1, "label_dim": 3, "model_channels": 4,
        "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "channels_per_head": 4,
    }  # fmt: skip
    description = {"kind": "distillkit:EDM2UNet", "arguments": {"network": network, "logvar_channels": 4}}
    return _teacher("magnitude-preserving", (1, 8, 8), description, ClassLabels(classes=3))


def flow() -> Teacher:
    """Three classes, 8 x 8 pixels: predicted velocity on a shifted flow."""
    description = _small(1, 2, classes=3, prediction="velocity", schedule={"kind": "flow", "shift": 3.0})
    return _teacher("flow", (1, 8, 8), description, ClassLabels(classes=3))


def video() -> Teacher:
    """Video (1, 3, 8, 8) of three frames, two classes."""
    return _teacher("video", (1, 3, 8, 8), _small(1, 3, classes=2), ClassLabels(classes=2), Pixels(video=True))


def points() -> Teacher:
    """Points (3,) in space."""
    return _teacher("points", (3,), _small(3, 0), codec=Points())


TEACHERS: Mapping[str, Callable[[], Teacher]] = {
    "class-conditional": conditional,
    "unconditional": unconditional,
    "text-to-latent": text_to_latent,
    "magnitude-preserving": magnitude_preserving,
    "flow": flow,
    "video": video,
    "points": points,
}
"""Kind -> teacher."""


def _small(channels: int, rank: int, **arguments: Any) -> dict[str, Any]:
    return {"kind": "distillkit:SmallNetwork", "arguments": {"channels": channels, "rank": rank, **arguments}}


def _teacher(
    name: str,
    shape: tuple[int, ...],
    network: Mapping[str, Any],
    conditioner: Conditioner | None = None,
    codec: Codec | None = None,
) -> Teacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = stirred(build_denoiser(network), seed=1)
    spec = TeacherSpec(name=f"conformance-{name}", shape=shape, solver_steps=3)
    teacher = Teacher(denoiser, spec, conditioner, codec)
    # Methods that train on real data find some with the teacher.
    data = registry().sources()[Images]
    teacher.images = lambda device: data.synthetic(teacher, device)
    return teacher


@torch.no_grad()
def stirred(module: Denoiser, seed: int) -> Denoiser:
    """The same network with noise on all its weights."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.add_(SPREAD * torch.randn(parameter.shape, generator=generator))
    return module
