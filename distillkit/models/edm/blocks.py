"""Layers that EDM's two U-Net families share (Karras et al. 2022, arXiv 2206.00364, appendix F).

Parameter names and shapes follow the released checkpoints, so that their state dicts load strictly.
All layers map (B, C, H, W) -> (B, C', H', W') unless they say otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

ADAPTED = ("conv0", "conv1", "qkv", "proj")
"""Layers of the blocks that have an adapter where no others are asked for: qkv and proj are missing where no block
attends."""


def adapter_layers() -> Mapping[type[nn.Module], type[nn.Module]]:
    """`Conv2d` -> one with an adapter; needs peft."""
    from distillkit.models.edm.adapter import LoraConv2d

    return {Conv2d: LoraConv2d}


def linear(in_features: int, out_features: int, *, bias: bool = True, init_scale: float = 1.0) -> nn.Linear:
    """Affine map (B, in) -> (B, out); `init_scale` shrinks the initial weight (0 starts the layer silent)."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(fan_balanced_uniform((out_features, in_features), scale=init_scale))
        if bias:
            layer.bias.zero_()
    return layer


def group_norm(channels: int, eps: float = 1e-5, groups: int | None = None) -> nn.GroupNorm:
    """Group normalisation with so many groups, by default at most 32 of at least four channels each."""
    return nn.GroupNorm(groups or min(32, channels // 4), channels, eps)


class Conv2d(nn.Module):
    """Convolution, optionally with fixed-filter resampling by two.

    `kernel=0` resamples only. `resample="up"` filters and doubles H and W before the convolution,
    `resample="down"` convolves and then filters and halves when `fused`, else filters first.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        resample: str | None = None,
        resample_filter: Sequence[float] = (1, 1),
        fused: bool = False,
        bias: bool = True,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.resample, self.fused = resample, fused
        self._taps = tuple(resample_filter)
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if kernel:
            shape = (out_channels, in_channels, kernel, kernel)
            self.weight = nn.Parameter(fan_balanced_uniform(shape, scale=init_scale))
            self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        if resample:
            self.register_buffer("resample_filter", taps_of(resample_filter))
        # The two-tap box filter is average pooling and nearest-neighbour growth, which have fast kernels.
        self._box = list(resample_filter) == [1, 1]

    def narrowed(self, channels: int) -> Conv2d:
        """A convolution of its kind, resampling and all, with so many channels out, without bias and with fresh
        weights."""
        kernel = 0 if self.weight is None else self.weight.shape[-1]
        return Conv2d(
            self.in_channels, channels, kernel, resample=self.resample, resample_filter=self._taps, fused=self.fused,
            bias=False,
        )  # fmt: skip

    def _up(self, x: Tensor, padding: int) -> Tensor:
        return grown(x) if self._box and padding == 0 else upsampled(x, self.resample_filter, padding)

    def _down(self, x: Tensor, padding: int) -> Tensor:
        return F.avg_pool2d(x, 2) if self._box and padding == 0 else downsampled(x, self.resample_filter, padding)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        pad = 0 if weight is None else weight.shape[-1] // 2
        trim = 0 if self.resample is None else (self.resample_filter.shape[-1] - 1) // 2
        if self.fused and weight is not None and self.resample == "up":
            return F.conv2d(self._up(x, max(trim - pad, 0)), weight, bias, padding=max(pad - trim, 0))
        if self.fused and weight is not None and self.resample == "down":
            x = self._down(F.conv2d(x, weight, padding=pad + trim), 0)
            return x if bias is None else x + bias[:, None, None]
        if self.resample == "up":
            x = self._up(x, trim)
        elif self.resample == "down":
            x = self._down(x, trim)
        return x if weight is None else F.conv2d(x, weight, bias, padding=pad)


def taps_of(resample_filter: Sequence[float]) -> Tensor:
    """The separable filter (1, 1, k, k) of taps in one direction, its sum one."""
    total = sum(resample_filter) ** 2
    return torch.tensor([[[[a * b / total for b in resample_filter] for a in resample_filter]]])


def grown(x: Tensor) -> Tensor:
    """Twice the height and the width of x (B, C, H, W), every value four times: the two-tap box filter."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def upsampled(x: Tensor, taps: Tensor, padding: int) -> Tensor:
    """x (B, C, H, W) at twice its size by a filter (1, 1, k, k)."""
    return F.conv_transpose2d(
        x, (taps * 4).to(x.dtype).expand(x.shape[1], 1, -1, -1), stride=2, padding=padding, groups=x.shape[1]
    )


def downsampled(x: Tensor, taps: Tensor, padding: int) -> Tensor:
    """x (B, C, H, W) at half its size by a filter (1, 1, k, k)."""
    return F.conv2d(x, taps.to(x.dtype).expand(x.shape[1], 1, -1, -1), stride=2, padding=padding, groups=x.shape[1])


class PositionalEmbedding(nn.Module):
    """Noise level (B,) -> cosines and sines (B, channels) at geometrically spaced frequencies."""

    def __init__(self, channels: int, *, endpoint: bool = False, max_positions: float = 10000) -> None:
        super().__init__()
        self.channels, self.endpoint, self.max_positions = channels, endpoint, max_positions

    def forward(self, level: Tensor) -> Tensor:
        half = self.channels // 2
        exponent = torch.arange(half, dtype=level.dtype, device=level.device) / (half - int(self.endpoint))
        angle = torch.outer(level, self.max_positions**-exponent)
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Noise level (B,) -> cosines and sines (B, channels) at fixed random frequencies (a buffer)."""

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16) -> None:
        super().__init__()
        # Few numbers: they are drawn also where a network is only described (on "meta"), which costs nothing.
        self.register_buffer("freqs", torch.randn(channels // 2, device="cpu") * scale)

    def forward(self, level: Tensor) -> Tensor:
        angle = torch.outer(level, 2 * math.pi * self.freqs.to(level.dtype))
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class UNetBlock(nn.Module):
    """Residual block with noise-level conditioning and optional self-attention: (x, embedding) -> x'.

    `adaptive_scale` conditions by scale and shift after the second norm (ADM), otherwise by a shift
    before it (DDPM++). `skip_scale` multiplies the sum of branch and skip. `groups` are those of the normalisations.
    Set `gradient_checkpointing` to recompute activations in the backward pass instead of keeping them, and
    `float32_attention` to compute attention in float32 where the rest runs in less, as EDM's own code does.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        *,
        resample: str | None = None,
        heads: int = 0,
        dropout: float = 0.0,
        skip_scale: float = 1.0,
        eps: float = 1e-5,
        resample_filter: Sequence[float] = (1, 1),
        project_resampled_skip: bool = False,
        adaptive_scale: bool = True,
        groups: int | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.heads, self.dropout = heads, dropout
        self.gradient_checkpointing = False
        self.float32_attention = False
        self.skip_scale, self.adaptive_scale = skip_scale, adaptive_scale
        resampling: dict[str, Any] = {"resample": resample, "resample_filter": resample_filter}
        self.norm0 = group_norm(in_channels, eps, groups)
        self.conv0 = Conv2d(in_channels, out_channels, 3, **resampling)
        self.affine = linear(embedding_channels, out_channels * (2 if adaptive_scale else 1))
        self.norm1 = group_norm(out_channels, eps, groups)
        self.conv1 = Conv2d(out_channels, out_channels, 3, init_scale=0.0)
        self.skip: Conv2d | None = None
        if out_channels != in_channels or resample:
            kernel = 1 if project_resampled_skip or out_channels != in_channels else 0
            self.skip = Conv2d(in_channels, out_channels, kernel, **resampling)
        if heads:
            self.norm2 = group_norm(out_channels, eps, groups)
            self.qkv = Conv2d(out_channels, out_channels * 3, 1)
            self.proj = Conv2d(out_channels, out_channels, 1, init_scale=0.0)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._forward, x, embedding, use_reentrant=False)
        return self._forward(x, embedding)

    def _forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        condition = self.affine(embedding)[:, :, None, None].to(h.dtype)
        if self.adaptive_scale:
            scale, shift = condition.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        else:
            h = F.silu(self.norm1(h + condition))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        x = self._scaled(h + (x if self.skip is None else self.skip(x)))
        return self._attend(x) if self.heads else x

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = split_heads(self.qkv(self.norm2(x)), self.heads)
        attended = joined_heads(attention(q, k, v, in_float32=self.float32_attention), x)
        return self._scaled(self.proj(attended) + x)

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.skip_scale == 1 else x * self.skip_scale


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    """(B, 3 C, H, W) in either memory layout -> three times (B, heads, H*W, C/heads), each vector in one piece.

    The released weights interleave q, k, v within each head: (heads, C/heads, 3, H*W).
    """
    sizes = (heads, qkv.shape[1] // (3 * heads), 3)
    if qkv.is_contiguous():
        parts = qkv.reshape(len(qkv), *sizes, -1).permute(3, 0, 1, 4, 2)
    else:
        parts = qkv.permute(0, 2, 3, 1).reshape(len(qkv), -1, *sizes).permute(4, 0, 2, 1, 3)
    return parts.contiguous().unbind(0)


def joined_heads(attended: Tensor, like: Tensor) -> Tensor:
    """(B, heads, H*W, C/heads) -> (B, C, H, W) of the shape and in the memory layout of `like`: where layouts mix,
    every layer after it copies."""
    batch, channels, height, width = like.shape
    joined = attended.transpose(1, 2).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    return joined.contiguous() if like.is_contiguous() else joined


def attention(q: Tensor, k: Tensor, v: Tensor, *, in_float32: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(C)) v of (B, heads, tokens, C), in v's type; `in_float32` computes it in that.

    Fused kernels keep no tokens x tokens weights. They want every vector in one piece, and have a first derivative in
    reverse mode alone: forward-mode differentiation gets the plain operations, and second derivatives need a
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` around the pass.
    """
    if in_float32:
        with torch.autocast(v.device.type, enabled=False):
            return attention(q.float(), k.float(), v.float()).to(v.dtype)
    if not torch.compiler.is_compiling() and forward_ad.unpack_dual(q).tangent is not None:
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def drop_labels(labels: Tensor, rate: float) -> Tensor:
    """One-hot labels (B, label_dim) with a share `rate` of the rows set to zero, the null label."""
    keep = torch.rand(len(labels), 1, device=labels.device) >= rate
    return labels * keep.to(labels.dtype)


def fan_balanced_uniform(shape: tuple[int, ...], *, scale: float) -> Tensor:
    """Glorot-uniform weights for a (out, in, ...) tensor, times `scale`; a tiny floor keeps zero layers trainable."""
    receptive = math.prod(shape[2:])
    bound = math.sqrt(6 / ((shape[0] + shape[1]) * receptive)) * max(scale, 1e-5)
    return torch.empty(shape).uniform_(-bound, bound)
