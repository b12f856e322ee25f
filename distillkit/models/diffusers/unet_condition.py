"""diffusers' UNet2DConditionModel: Stable Diffusion 1 and 2 (one text encoder) and XL (two, and sizes)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.text import TextEncoder
from distillkit.diffusion.denoisers import Prediction
from distillkit.errors import UsageError
from distillkit.models.bounds import UNet2DConditionSizes, check
from distillkit.models.diffusers.attention import PROJECTIONS
from distillkit.models.diffusers.family import Described, Pipeline, sides
from distillkit.models.diffusers.predictions import predicting, time_scale
from distillkit.models.diffusers.scheduler import Grid
from distillkit.models.prompts import Prompts
from distillkit.models.text.clip import ClipText
from distillkit.models.text.sdxl import SDXLText
from distillkit.reading import validated
from distillkit.text import short

GUIDANCE = {"time_cond_proj_dim": 256}
"""What gives a network an input of guidance: the width of its embedding, that of diffusers' script for LCM."""
SIZES = 6
"""Numbers that SDXL's networks see of a picture's size and crop."""


class ConditionUNet(nn.Module):
    """F(x, t, condition) of a UNet2DConditionModel: (B, C, H, W), (B,), `text` (B, L, W) -> (B, C, H, W), in x's dtype.

    Where the network embeds sizes too, as SDXL's does, the condition also holds `pooled` (B, P) and `sizes` (B, 6);
    where it embeds a guidance weight w, as those of latent consistency models do, `guidance` (B,).

    Args:
        arguments: of UNet2DConditionModel.
        time_scale: what times are multiplied with for the network.
    """

    casts_inputs = True
    adapter_targets = PROJECTIONS

    def __init__(self, arguments: Mapping[str, Any], *, time_scale: float = 1.0) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel

        unet: Any = UNet2DConditionModel
        self.unet = unet(**arguments)
        self.time_scale = time_scale

    @property
    def takes_guidance(self) -> bool:
        return self.unet.config.get("time_cond_proj_dim") is not None

    @property
    def arguments_for_guidance(self) -> Mapping[str, Any]:
        """Arguments of the network that give it an input of guidance."""
        return GUIDANCE

    @property
    def time_layers(self) -> Sequence[nn.Linear]:
        """The first layer of the embedded time."""
        return [self.unet.time_embedding.linear_1]

    @property
    def bottleneck(self) -> nn.Module:
        """The block between the way down and the way up."""
        return self.unet.mid_block

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of each resolution: the way down, the middle, the way up."""
        return [*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks]

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        dtype = self.unet.dtype
        added = None
        if "pooled" in condition:
            added = {"text_embeds": condition["pooled"].to(dtype), "time_ids": condition["sizes"].to(dtype)}
        out = self.unet(
            x.to(dtype), t * self.time_scale, encoder_hidden_states=condition["text"].to(dtype),
            added_cond_kwargs=added, return_dict=False, timestep_cond=self._embedded(condition, dtype),
        )[0]  # fmt: skip
        return out.to(x.dtype)

    def _embedded(self, condition: Condition, dtype: torch.dtype) -> Tensor | None:
        """Sines and cosines of 1000 (w - 1), (B, time_cond_proj_dim): papers of LCM count from no guidance, w = 1.

        That is also taken where the condition says nothing of it.
        """
        if not self.takes_guidance:
            return None
        weight = condition.get("guidance", torch.ones(len(condition["text"]), device=condition["text"].device))
        width = int(self.unet.config["time_cond_proj_dim"])
        half = width // 2
        rates = torch.exp(torch.arange(half, device=weight.device) * -(torch.log(torch.tensor(1e4)) / (half - 1)))
        angles = 1000.0 * (weight.float() - 1)[:, None] * rates[None]
        return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, width % 2)).to(dtype)


def unet_condition(
    network: Mapping[str, Any], schedule: Mapping[str, Any], prediction: Prediction, sigma_data: float = 1.0
) -> Denoiser:
    """A denoiser of a UNet2DConditionModel.

    Args:
        network: arguments of UNet2DConditionModel.
        schedule: {"kind": "vp" or "flow", ...}.
        prediction: epsilon, v_prediction or sample (vp); velocity (flow).
        sigma_data: standard deviation of the latents.

    Raises:
        ValueError: for a schedule or prediction that it does not have.
        TypeError: for arguments that UNet2DConditionModel does not take.
    """
    check(UNet2DConditionSizes, network)
    model = ConditionUNet(network, time_scale=time_scale(schedule))
    return predicting(model, schedule, prediction, sigma_data)


def describe(pipeline: Pipeline) -> Described:
    """Stable Diffusion: latents of a VAE, conditions of one CLIP or two.

    Raises:
        UsageError: for a part that is missing, or an option that is not followed.
    """
    sizes = validated(UNet2DConditionSizes, pipeline.config, str(pipeline.network / "config.json"))
    if sizes.in_channels != sizes.out_channels:
        raise UsageError(
            f"{pipeline.network} takes {sizes.in_channels} channels and predicts {sizes.out_channels}: it needs more "
            "than a noisy latent, as models for inpainting do, and cannot be distilled as a text-to-image model"
        )
    pipeline.refuse(
        {
            "class_embed_type": (None,), "addition_embed_type": (None, "text_time"), "time_cond_proj_dim": (None,),
            "encoder_hid_dim_type": (None,), "num_class_embeds": (None,),
        }
    )  # fmt: skip
    large = pipeline.config.get("addition_embed_type") == "text_time"
    pipeline.require("vae")
    codec = pipeline.autoencoder(spread=large)
    height, width = pipeline.sides(codec, sides(sizes.sample_size, pipeline))
    size = (codec.factor * height, codec.factor * width)
    return Described(
        shape=(sizes.in_channels, height, width),
        network=pipeline.of_latents("distillkit:UNet2DConditionModel", pipeline.noise_on(Grid(own=True))),
        prefix="model.unet.",
        conditioner=Prompts(encoder=_two_clips(pipeline, *size) if large else _one_clip(pipeline)),
        codec=codec,
        solver="ddim",
        solver_steps=50,
    )


def _one_clip(pipeline: Pipeline) -> TextEncoder:
    pipeline.require("text_encoder", "tokenizer")
    return ClipText(parts=pipeline.parts)


def _two_clips(pipeline: Pipeline, height: int, width: int) -> TextEncoder:
    first = pipeline.has("text_encoder")
    pipeline.require(*(("text_encoder", "tokenizer") if first else ()), "text_encoder_2", "tokenizer_2")
    pooled = pipeline.parts.configuration("text_encoder_2").get("projection_dim", 512)
    size, width_in = (
        pipeline.config.get("addition_time_embed_dim"),
        pipeline.config.get("projection_class_embeddings_input_dim"),
    )
    if not isinstance(size, int) or width_in != SIZES * size + pooled:
        raise UsageError(
            f"{pipeline.network / 'config.json'}: projection_class_embeddings_input_dim {short(width_in)} is not "
            f"{SIZES} times addition_time_embed_dim {short(size)} and the {short(pooled)} of text_encoder_2; models "
            "that refine pictures (SDXL's refiner) have other numbers there and are not supported"
        )
    return SDXLText(
        parts=pipeline.parts,
        first=first,
        sizes=(height, width, 0, 0, height, width),
        zero_null=bool(pipeline.index.get("force_zeros_for_empty_prompt", True)),
    )
