"""Layers that keep the expected magnitude of what passes through them (Karras et al. 2024, arXiv 2312.02696).

Parameter names and shapes follow the released checkpoints, so that their state dicts load strictly.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

SMALLEST = 1e-4
"""epsilon of a normalisation, beside a magnitude of one."""


def normalize(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """x / (|x| / sqrt(N) + eps) over the N numbers along `dims`, whose root mean square is one then;
    the norm is taken in float32 or wider."""
    count = math.prod([x.shape[dim] for dim in dims])
    wide = torch.promote_types(x.dtype, torch.float32)
    magnitude = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=wide) / math.sqrt(count)
    return x / (magnitude + SMALLEST).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """silu(x) / 0.596 (Eq. 81)."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, share: float) -> Tensor:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2), t the share of b (Eq. 88)."""
    return ((1 - share) * a + share * b) / math.hypot(1 - share, share)


def mp_cat(a: Tensor, b: Tensor, share: float) -> Tensor:
    """sqrt((N_a + N_b) / ((1 - t)^2 + t^2)) [(1 - t) / sqrt(N_a) a, t / sqrt(N_b) b] along the channels (Eq. 103)."""
    whole = math.sqrt(a.shape[1] + b.shape[1]) / math.hypot(1 - share, share)
    return torch.cat([whole * (1 - share) * a.shape[1] ** -0.5 * a, whole * share * b.shape[1] ** -0.5 * b], dim=1)


class MPFourier(nn.Module):
    """Noise level (B,) -> sqrt(2) cos(2 pi (f x + phi)) (B, channels), f ~ N(0, 1) and phi ~ U(0, 1) fixed (Eq. 75)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Few numbers: they are drawn also where a network is only described (on "meta"), which costs nothing.
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels, device="cpu"))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels, device="cpu"))

    def forward(self, level: Tensor) -> Tensor:
        angle = level[:, None] * self.freqs.to(level.dtype) + self.phases.to(level.dtype)
        return angle.cos() * math.sqrt(2)


class MPConv(nn.Module):
    """Convolution, or a linear map without `kernel`, whose effective weight is gain / sqrt(N) W / |W| for each of its
    channels out, |.| the root mean square and N their number of weights (Eq. 47): no bias, and only its direction is
    learnt.

    It computes in the type of its input; its weight is normalised in float32 or wider.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.kernel = in_channels, out_channels, kernel
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))
        # Where a network is only described there are no numbers, and describing it stays cheap.
        if not self.weight.is_meta:
            self.constrain()

    @property
    def out_features(self) -> int:
        """As of `nn.Linear`."""
        return self.out_channels

    @property
    def fan_in(self) -> int:
        """N, the weights of one channel out."""
        return self.in_channels * math.prod(self.kernel)

    def forward(self, x: Tensor, gain: Tensor | float = 1.0, added: Tensor | None = None) -> Tensor:
        """(B, in, ...) -> (B, out, ...).

        Args:
            gain: of the output's magnitude, a scalar.
            added: to W, before it is normalised: what an adapter has learnt.
        """
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        if added is not None:
            weight = weight + added.to(weight.dtype)
        weight = normalize(weight, self._inputs) * (gain / math.sqrt(self.fan_in))
        weight = weight.to(x.dtype)
        return F.conv2d(x, weight, padding=self.kernel[-1] // 2) if self.kernel else F.linear(x, weight)

    @torch.no_grad()
    def constrain(self) -> None:
        """Forced weight normalisation: W <- W / |W| (Eq. 66), which keeps W from growing and its effective learning
        rate from decaying with it."""
        # Of a weight that several processes share in parts, each has whole channels out.
        weight = self.weight.to_local() if isinstance(self.weight, DTensor) else self.weight
        weight.copy_(normalize(weight, self._inputs))

    @property
    def _inputs(self) -> tuple[int, ...]:
        return tuple(range(1, 2 + len(self.kernel)))
