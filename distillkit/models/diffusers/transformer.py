"""What diffusers' transformers of latents share: tokens as maps, positions, predicted variances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.errors import UsageError
from distillkit.models.bounds import TransformerSizes
from distillkit.models.diffusers.attention import PROJECTIONS, PROJECTIONS_OF_TEXT
from distillkit.models.diffusers.family import Pipeline


class TransformerNetwork(nn.Module):
    """Around a transformer of diffusers: F(x, t, condition), and its layers for discriminators.

    Args:
        transformer: with its blocks in `transformer_blocks`, and `single_transformer_blocks` behind them where it has
            two kinds.
        patch: side of a token in a latent.
        time_scale: what times are multiplied with for it.
    """

    casts_inputs = True
    adapter_targets = (*PROJECTIONS, *PROJECTIONS_OF_TEXT)

    def __init__(self, transformer: Any, patch: int, time_scale: float = 1.0) -> None:
        super().__init__()
        self.transformer, self.patch, self.time_scale = transformer, patch, time_scale

    def predicted(self, x: Tensor, t: Tensor, text: Tensor | None = None, **inputs: Any) -> Tensor:
        """The transformer's output for latents x (B, C, h, w) at t (B,), without a predicted variance, in x's dtype.

        Args:
            text: of its cross-attention, (B, L, W).
            inputs: others, in the types that it takes.
        """
        dtype = self.transformer.dtype
        if text is not None:
            inputs["encoder_hidden_states"] = text.to(dtype)
        out = self.transformer(x.to(dtype), timestep=t * self.time_scale, return_dict=False, **inputs)[0]
        return out[:, : x.shape[1]].to(x.dtype)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer's blocks, those of both kinds where it has two."""
        return [*self.transformer.transformer_blocks, *getattr(self.transformer, "single_transformer_blocks", ())]

    @property
    def time_layers(self) -> Sequence[nn.Linear]:
        """The first layers of the embedded time: one, or one in every block."""
        return [m.timestep_embedder.linear_1 for m in self.transformer.modules() if hasattr(m, "timestep_embedder")]

    @property
    def bottleneck(self) -> nn.Module:
        """The block in the middle."""
        return self.blocks[(len(self.blocks) - 1) // 2]

    def feature(self, output: Any, x: Tensor) -> Tensor:
        """The picture's tokens in a layer's output as a map (B, C, h / patch, w / patch), for latents x (B, C, h, w).

        Blocks of text and picture give both, the text first, side by side or in one row of tokens.
        """
        tokens = output[-1] if isinstance(output, tuple) else output
        height, width = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        if tokens.ndim != 3 or tokens.shape[1] < height * width:
            return tokens
        return tokens[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))


def with_positions(transformer: Any) -> Any:
    """The transformer with the table of its positions, which is no weight, also where it was built on "meta"."""
    from diffusers.models.embeddings import PatchEmbed

    embed = transformer.pos_embed
    if embed.pos_embed.is_meta:
        side = embed.patch_size
        kind: Any = PatchEmbed
        with torch.device("cpu"):
            made = kind(
                height=embed.height * side, width=embed.width * side, patch_size=side, in_channels=1,
                embed_dim=embed.pos_embed.shape[-1], interpolation_scale=embed.interpolation_scale,
            )  # fmt: skip
        embed.pos_embed = made.pos_embed
    return transformer


def check_channels(sizes: TransformerSizes, pipeline: Pipeline, *, variance: bool = True) -> None:
    """Refuse a network that predicts other channels than it takes; twice as many are a variance too.

    Raises:
        UsageError: naming both numbers.
    """
    out = sizes.in_channels if sizes.out_channels is None else sizes.out_channels
    if out not in ((sizes.in_channels, 2 * sizes.in_channels) if variance else (sizes.in_channels,)):
        raise UsageError(
            f"{pipeline.network} takes {sizes.in_channels} channels and predicts {out}: it needs more than a noisy "
            "latent, as models for inpainting do, and cannot be distilled as a model that makes pictures"
        )
