"""diffusers' PixArtTransformer2DModel: PixArt-alpha (Chen et al. 2023, arXiv 2310.00426) and -sigma (2403.04692)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.diffusion.denoisers import Prediction
from distillkit.models.bounds import TransformerSizes, check
from distillkit.models.diffusers.family import Described, Pipeline
from distillkit.models.diffusers.predictions import predicting, time_scale
from distillkit.models.diffusers.scheduler import Grid
from distillkit.models.diffusers.transformer import TransformerNetwork, check_channels, with_positions
from distillkit.models.prompts import Prompts
from distillkit.models.text.t5 import T5Text
from distillkit.reading import validated

LENGTHS = {"PixArtSigmaPipeline": 300}
"""Tokens of a prompt by the class of the pipeline; 120 in others."""
SIZES = ("resolution", "aspect_ratio")
SAMPLE_SIZE_WITH_SIZES = 128
"""Networks of latents of this size see the picture's size, unless they say otherwise."""


class PixArt(TransformerNetwork):
    """F(x, t, condition) of a PixArtTransformer2DModel: (B, C, h, w), (B,), `text` (B, L, W) and `mask` (B, L) -> (B,
    C, h, w), in x's dtype.

    Where the network embeds sizes, the condition also holds `resolution` (B, 2) and `aspect_ratio` (B, 1). The
    predicted variance is left out.

    Args:
        arguments: of PixArtTransformer2DModel.
        time_scale: what times are multiplied with for the network.
    """

    def __init__(self, arguments: Mapping[str, Any], *, time_scale: float = 1.0) -> None:
        from diffusers import PixArtTransformer2DModel

        kind: Any = PixArtTransformer2DModel
        super().__init__(with_positions(kind(**arguments)), int(arguments.get("patch_size", 2)), time_scale)

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        dtype = self.transformer.dtype
        sizes = {name: condition[name].to(dtype) if name in condition else None for name in SIZES}
        mask = condition["mask"].to(dtype)
        return self.predicted(x, t, condition["text"], encoder_attention_mask=mask, added_cond_kwargs=sizes)


def pixart(
    network: Mapping[str, Any], schedule: Mapping[str, Any], prediction: Prediction, sigma_data: float = 1.0
) -> Denoiser:
    """A denoiser of a PixArtTransformer2DModel.

    Args:
        network: arguments of PixArtTransformer2DModel.
        schedule: {"kind": "vp" or "flow", ...}.
        prediction: epsilon, v_prediction or sample (vp); velocity (flow).
        sigma_data: standard deviation of the latents.

    Raises:
        ValueError: for a schedule or prediction that it does not have.
        TypeError: for arguments that PixArtTransformer2DModel does not take.
    """
    check(TransformerSizes, network)
    return predicting(PixArt(network, time_scale=time_scale(schedule)), schedule, prediction, sigma_data)


def describe(pipeline: Pipeline) -> Described:
    """Latents of a VAE, conditions of T5 with a mask.

    Raises:
        UsageError: for a part that is missing, or an option that is not followed.
    """
    sizes = validated(TransformerSizes, pipeline.config, str(pipeline.network / "config.json"))
    check_channels(sizes, pipeline)
    pipeline.require("vae", "text_encoder", "tokenizer")
    codec, noise = pipeline.autoencoder(), pipeline.noise_on(Grid(own=True))
    embeds = pipeline.config.get("use_additional_conditions")
    sees_size = sizes.sample_size == SAMPLE_SIZE_WITH_SIZES if embeds is None else bool(embeds)
    height, width = pipeline.sides(codec, (sizes.sample_size, sizes.sample_size), sizes.patch_size)
    text = T5Text(
        parts=pipeline.parts,
        length=LENGTHS.get(str(pipeline.index.get("_class_name")), 120),
        resolution=(float(codec.factor * height), float(codec.factor * width)) if sees_size else None,
    )
    return Described(
        shape=(sizes.in_channels, height, width),
        network=pipeline.of_latents("distillkit:PixArtTransformer2DModel", noise),
        prefix="model.transformer.",
        conditioner=Prompts(encoder=text),
        codec=codec,
        solver="ddim",
        solver_steps=20,
    )
