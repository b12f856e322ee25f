"""A network for points of a space, (B, D): what methods are tried on where the truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class PointMLP(nn.Module):
    """F(x, c_noise) -> (B, D): residual layers that see the noise level as Fourier features.

    Args:
        in_channels, out_channels: coordinates of a point.
        width: of the hidden layers.
        layers: their number.
        label_dim: number of classes; one-hot labels are embedded beside the noise level.

    Set `gradient_checkpointing` to compute the layers' activations anew in the backward pass.
    """

    casts_inputs = True

    def __init__(
        self, in_channels: int = 2, out_channels: int = 2, *, width: int = 128, layers: int = 3, label_dim: int = 0
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.first = nn.Linear(in_channels, width)
        self.level = nn.Linear(16, width)
        self.label = nn.Linear(label_dim, width, bias=False) if label_dim else None
        self.layers = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(layers)
        )
        self.bottleneck = nn.Identity()
        self.last = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, out_channels))

    @property
    def blocks(self) -> list[nn.Module]:
        """The residual layers."""
        return list(self.layers)

    @property
    def time_layers(self) -> Sequence[nn.Linear]:
        """The layer of the embedded noise level."""
        return [self.level]

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        frequencies = math.pi / 8 * 2.0 ** torch.arange(8, device=x.device)
        angles = noise[:, None] * frequencies.to(x.dtype)
        dtype = self.first.weight.dtype
        embedding = self.level(torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype))
        if self.label is not None and labels is not None:
            embedding = embedding + self.label(labels.to(dtype))
        hidden = self.first(x.to(dtype))
        for layer in self.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden = hidden + checkpoint(layer, hidden + embedding, use_reentrant=False)
            else:
                hidden = hidden + layer(hidden + embedding)
        return self.last(self.bottleneck(hidden))
