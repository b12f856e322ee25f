"""The block of EDM2's encoder and decoder (Karras et al. 2024, Fig. 21)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distillkit.models.edm.blocks import attention, downsampled, grown, joined_heads, split_heads, taps_of, upsampled
from distillkit.models.edm2.layers import MPConv, mp_silu, mp_sum, normalize


class MPBlock(nn.Module):
    """Residual block with conditioning by a scale and optional cosine attention: (x, embedding) -> x'.

    An encoder's block begins with pixel normalisation, after its 1x1 convolution where it has one; a decoder's has this
    convolution on the main path. Set `gradient_checkpointing` to recompute activations in the backward pass instead of
    keeping them, and `float32_attention` to compute attention in float32 where the rest runs in less.

    Args:
        side: encoder or decoder.
        resample: halve or double H and W first.
        resample_filter: taps in one direction, an even number.
        channels_per_head: heads have as many; wide as they are, blocks of fewer have no attention.
        dropout: in the residual branch, while training.
        res_balance, attn_balance: shares of the branches in their sums with the main path.
        clip_act: largest magnitude of what the block gives; None for any.

    Raises:
        ValueError: for a filter of an odd number of taps.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        *,
        side: Literal["enc", "dec"],
        resample: Literal["up", "down"] | None = None,
        attention: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        channels_per_head: int = 64,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256,
    ) -> None:
        super().__init__()
        if len(resample_filter) % 2:
            raise ValueError(f"resample_filter has {len(resample_filter)} taps, and an even number is due")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.side, self.resample, self.resample_filter = side, resample, tuple(resample_filter)
        self.heads = out_channels // channels_per_head if attention else 0
        self.dropout, self.clip_act = dropout, clip_act
        self.res_balance, self.attn_balance = res_balance, attn_balance
        self.gradient_checkpointing = False
        self.float32_attention = False
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(out_channels if side == "enc" else in_channels, out_channels, (3, 3))
        self.emb_linear = MPConv(embedding_channels, out_channels)
        self.conv_res1 = MPConv(out_channels, out_channels, (3, 3))
        self.conv_skip = MPConv(in_channels, out_channels, (1, 1)) if in_channels != out_channels else None
        self.attn_qkv = MPConv(out_channels, out_channels * 3, (1, 1)) if self.heads else None
        self.attn_proj = MPConv(out_channels, out_channels, (1, 1)) if self.heads else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._forward, x, embedding, use_reentrant=False)
        return self._forward(x, embedding)

    def _forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self._resampled(x)
        if self.side == "enc":
            x = normalize(self._projected(x), (1,))
        y = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(embedding, self.emb_gain) + 1
        y = mp_silu(y * scale[:, :, None, None].to(y.dtype))
        y = self.conv_res1(F.dropout(y, self.dropout, self.training))
        x = mp_sum(x if self.side == "enc" else self._projected(x), y, self.res_balance)
        if self.attn_qkv is not None and self.attn_proj is not None:
            q, k, v = (normalize(part, (3,)) for part in split_heads(self.attn_qkv(x), self.heads))
            attended = joined_heads(attention(q, k, v, in_float32=self.float32_attention), x)
            x = mp_sum(x, self.attn_proj(attended), self.attn_balance)
        return x if self.clip_act is None else x.clamp(-self.clip_act, self.clip_act)

    def _projected(self, x: Tensor) -> Tensor:
        return x if self.conv_skip is None else self.conv_skip(x)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample is None:
            return x
        if self.resample_filter == (1, 1):
            return grown(x) if self.resample == "up" else F.avg_pool2d(x, 2)
        taps, padding = taps_of(self.resample_filter).to(x.device), (len(self.resample_filter) - 1) // 2
        return (upsampled if self.resample == "up" else downsampled)(x, taps, padding)
