"""diffusers' SD3Transformer2DModel: Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.diffusion.denoisers import Prediction
from distillkit.errors import UsageError
from distillkit.models.bounds import SD3Sizes, check
from distillkit.models.diffusers.family import Described, Pipeline
from distillkit.models.diffusers.predictions import predicting, time_scale
from distillkit.models.diffusers.scheduler import Grid
from distillkit.models.diffusers.transformer import TransformerNetwork, check_channels
from distillkit.models.prompts import Prompts
from distillkit.models.text.sd3 import SD3Text
from distillkit.reading import validated


class SD3(TransformerNetwork):
    """F(x, t, condition) of an SD3Transformer2DModel: (B, C, h, w), (B,), `text` (B, L, W) and `pooled` (B, P) ->
    (B, C, h, w), in x's dtype.

    Args:
        arguments: of SD3Transformer2DModel.
        time_scale: what times are multiplied with for the network.
    """

    def __init__(self, arguments: Mapping[str, Any], *, time_scale: float = 1.0) -> None:
        from diffusers import SD3Transformer2DModel

        kind: Any = SD3Transformer2DModel
        super().__init__(kind(**arguments), int(arguments.get("patch_size", 2)), time_scale)

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        pooled = condition["pooled"].to(self.transformer.dtype)
        return self.predicted(x, t, condition["text"], pooled_projections=pooled)


def sd3(
    network: Mapping[str, Any], schedule: Mapping[str, Any], prediction: Prediction, sigma_data: float = 1.0
) -> Denoiser:
    """A denoiser of an SD3Transformer2DModel.

    Args:
        network: arguments of SD3Transformer2DModel.
        schedule: {"kind": "vp" or "flow", ...}.
        prediction: epsilon, v_prediction or sample (vp); velocity (flow).
        sigma_data: standard deviation of the latents.

    Raises:
        ValueError: for a schedule or prediction that it does not have.
        TypeError: for arguments that SD3Transformer2DModel does not take.
    """
    check(SD3Sizes, network)
    return predicting(SD3(network, time_scale=time_scale(schedule)), schedule, prediction, sigma_data)


def describe(pipeline: Pipeline) -> Described:
    """Latents of a VAE, conditions of two CLIPs and, where the pipeline has it, T5.

    Raises:
        UsageError: for a part that is missing, or an option that is not followed.
    """
    sizes = validated(SD3Sizes, pipeline.config, str(pipeline.network / "config.json"))
    check_channels(sizes, pipeline, variance=False)
    third = pipeline.has("text_encoder_3")
    last = ("text_encoder_3", "tokenizer_3") if third else ()
    pipeline.require("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", *last)
    codec = pipeline.autoencoder(shifted=True)
    height, width = pipeline.sides(codec, (sizes.sample_size, sizes.sample_size), sizes.patch_size)
    if max(height, width) > (most := sizes.patch_size * sizes.pos_embed_max_size):
        raise UsageError(
            f"{pipeline.network} knows {sizes.pos_embed_max_size} positions a side (pos_embed_max_size), which is "
            f"pictures of {codec.factor * most} pixels; {codec.factor * max(height, width)} are too many"
        )
    shape = (sizes.in_channels, height, width)
    noise = pipeline.noise_on(Grid(own=True, patch=sizes.patch_size)).sized(shape)
    return Described(
        shape=shape,
        network=pipeline.of_latents("distillkit:SD3Transformer2DModel", noise),
        prefix="model.transformer.",
        conditioner=Prompts(encoder=SD3Text(parts=pipeline.parts, width=sizes.joint_attention_dim, third=third)),
        codec=codec,
        solver="euler",
        solver_steps=28,
    )
