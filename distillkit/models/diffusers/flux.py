"""diffusers' FluxTransformer2DModel: FLUX.1 (Black Forest Labs 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.diffusion.denoisers import Prediction
from distillkit.errors import UsageError
from distillkit.models.bounds import FluxSizes, check
from distillkit.models.diffusers.family import Described, Pipeline
from distillkit.models.diffusers.predictions import FLOW_TIMES, predicting
from distillkit.models.diffusers.scheduler import Grid
from distillkit.models.diffusers.transformer import TransformerNetwork
from distillkit.models.prompts import Prompts
from distillkit.models.text.flux import FluxText
from distillkit.reading import validated

SIDE = 128
"""Of latents by default: the network's configuration says no size, the pipeline does."""
PACKED = 2
"""Side of the squares of a latent that are packed into one token."""
GUIDANCE = 3.5
"""The pipeline's default for networks with embedded guidance."""


class Flux(TransformerNetwork):
    """F(x, t, condition) of a FluxTransformer2DModel: (B, C, h, w), (B,), `text` (B, L, W) and `pooled` (B, P) ->
    (B, C, h, w), in x's dtype. Networks with embedded guidance also take its weight, `guidance` (B,).

    Latents are packed, and their places numbered, here.

    Args:
        arguments: of FluxTransformer2DModel.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        from diffusers import FluxTransformer2DModel

        kind: Any = FluxTransformer2DModel
        super().__init__(kind(**arguments), PACKED)

    @property
    def takes_guidance(self) -> bool:
        return bool(self.transformer.config["guidance_embeds"])

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        dtype, text = self.transformer.dtype, condition["text"]
        height, width = x.shape[2] // PACKED, x.shape[3] // PACKED
        guidance = condition["guidance"] if self.takes_guidance else None
        out = self.transformer(
            packed(x).to(dtype), timestep=t * FLOW_TIMES / FLOW_TIMES, guidance=guidance,
            encoder_hidden_states=text.to(dtype), pooled_projections=condition["pooled"].to(dtype),
            txt_ids=x.new_zeros(text.shape[1], 3), img_ids=places(height, width, x), return_dict=False,
        )[0]  # fmt: skip
        return unpacked(out, height, width).to(x.dtype)


def packed(x: Tensor) -> Tensor:
    """Latents (B, C, h, w) as tokens (B, h / 2 * w / 2, 4 C), every square of 2 x 2 one token."""
    squares = x.unflatten(3, (-1, PACKED)).unflatten(2, (-1, PACKED))
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `packed`, for so many tokens in height and width."""
    squares = tokens.unflatten(2, (-1, PACKED, PACKED)).unflatten(1, (height, width))
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def places(height: int, width: int, like: Tensor) -> Tensor:
    """(0, row, column) of every token, (height * width, 3)."""
    rows, columns = torch.arange(height, device=like.device), torch.arange(width, device=like.device)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], -1).flatten(0, 1).to(like.dtype)


def flux(
    network: Mapping[str, Any], schedule: Mapping[str, Any], prediction: Prediction, sigma_data: float = 1.0
) -> Denoiser:
    """A denoiser of a FluxTransformer2DModel.

    Args:
        network: arguments of FluxTransformer2DModel.
        schedule: {"kind": "flow", ...}.
        prediction: velocity.
        sigma_data: standard deviation of the latents.

    Raises:
        ValueError: for a schedule or prediction that it does not have.
        TypeError: for arguments that FluxTransformer2DModel does not take.
    """
    check(FluxSizes, network)
    if schedule.get("kind") != "flow":
        raise ValueError(f"FluxTransformer2DModel is a flow's network, not one of a {schedule.get('kind')} schedule")
    return predicting(Flux(network), schedule, prediction, sigma_data)


def describe(pipeline: Pipeline) -> Described:
    """Latents of a VAE, conditions of T5 and CLIP, and of the embedded guidance where there is one.

    Raises:
        UsageError: for a part that is missing, or an option that is not followed.
    """
    sizes = validated(FluxSizes, pipeline.config, str(pipeline.network / "config.json"))
    pipeline.require("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    codec = pipeline.autoencoder(shifted=True)
    out = sizes.out_channels or sizes.in_channels
    if not sizes.in_channels == out == codec.latent_channels * PACKED**2:
        raise UsageError(
            f"{pipeline.network} takes {sizes.in_channels} channels and predicts {out}, and the packed latents of its "
            f"vae have {codec.latent_channels * PACKED**2}: it needs more than a noisy latent, as models for "
            "inpainting and control do, and cannot be distilled as a text-to-image model"
        )
    guided = bool(pipeline.config.get("guidance_embeds"))
    guidance = pipeline.asked.embedded_guidance if guided else None
    shape = (codec.latent_channels, *pipeline.sides(codec, (SIDE, SIDE), PACKED))
    noise = pipeline.noise_on(Grid(patch=PACKED)).sized(shape)
    text = FluxText(parts=pipeline.parts, guidance=(GUIDANCE if guidance is None else guidance) if guided else None)
    return Described(
        shape=shape,
        network=pipeline.of_latents("distillkit:FluxTransformer2DModel", noise),
        prefix="model.transformer.",
        conditioner=Prompts(encoder=text),
        codec=codec,
        solver="euler",
        solver_steps=28 if guided else 4,
    )
