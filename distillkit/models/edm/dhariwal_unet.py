"""DhariwalUNet: the ADM architecture (Dhariwal & Nichol 2021, arXiv 2105.05233) as re-implemented for EDM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillkit.models.edm.blocks import (
    ADAPTED,
    Conv2d,
    PositionalEmbedding,
    UNetBlock,
    adapter_layers,
    drop_labels,
    group_norm,
    linear,
)

CHANNELS_PER_HEAD = 64


class DhariwalUNet(nn.Module):
    """U-Net F(x, c_noise, labels, augment) on (B, C, H, W); EDM's ImageNet-64 network.

    Attention has one head per 64 channels, hence none where a block is narrower than that, unless the last arguments
    say otherwise: they make every network of guided-diffusion and improved-diffusion. The names of the others are those
    stored in EDM's released checkpoints. It computes in the type of its weights.

    Args:
        channels_per_head: of attention.
        heads: of all attention, whatever its width.
        resample_blocks: half and double the resolution within residual blocks; otherwise by convolutions, of stride 2
            on the way down.
        adaptive_scale: the embedding scales and shifts what is normalised; otherwise it is added before.
        groups: of every normalisation; at most 32 of at least four channels each by default.
    """

    casts_inputs = True
    adapter_targets = ADAPTED

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        channels_per_head: int = CHANNELS_PER_HEAD,
        heads: int | None = None,
        resample_blocks: bool = True,
        adaptive_scale: bool = True,
        groups: int | None = None,
    ) -> None:
        super().__init__()
        self.label_dropout = label_dropout
        embedding_channels = model_channels * channel_mult_emb

        def block(cin: int, cout: int, *, attention: bool = False, resample: str | None = None) -> UNetBlock:
            return UNetBlock(
                cin, cout, embedding_channels, resample=resample, dropout=dropout, adaptive_scale=adaptive_scale,
                heads=(cout // channels_per_head if heads is None else heads) if attention else 0, groups=groups,
            )  # fmt: skip

        def resampled(channels: int, way: Literal["down", "up"]) -> nn.Module:
            if resample_blocks:
                return block(channels, channels, resample=way)
            if way == "up":
                return Conv2d(channels, channels, 3, resample="up")
            return nn.Conv2d(channels, channels, 3, stride=2, padding=1)

        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = linear(augment_dim, model_channels, bias=False, init_scale=0.0) if augment_dim else None
        self.map_layer0 = linear(model_channels, embedding_channels)
        self.map_layer1 = linear(embedding_channels, embedding_channels)
        self.map_label = linear(label_dim, embedding_channels, bias=False) if label_dim else None

        self.enc = nn.ModuleDict()
        cout = in_channels
        skips: list[int] = []
        for level, mult in enumerate(channel_mult):
            res = img_resolution >> level
            if level == 0:
                cout = int(model_channels * mult)
                self.enc[f"{res}x{res}_conv"] = Conv2d(in_channels, cout, 3)
            else:
                self.enc[f"{res}x{res}_down"] = resampled(cout, "down")
            skips.append(cout)
            for index in range(num_blocks):
                cin, cout = cout, int(model_channels * mult)
                self.enc[f"{res}x{res}_block{index}"] = block(cin, cout, attention=res in attn_resolutions)
                skips.append(cout)

        self.dec = nn.ModuleDict()
        last = len(channel_mult) - 1
        for level, mult in reversed(list(enumerate(channel_mult))):
            res = img_resolution >> level
            if level == last:
                self.dec[f"{res}x{res}_in0"] = block(cout, cout, attention=True)
                self.dec[f"{res}x{res}_in1"] = block(cout, cout)
            else:
                self.dec[f"{res}x{res}_up"] = resampled(cout, "up")
            for index in range(num_blocks + 1):
                cin, cout = cout + skips.pop(), int(model_channels * mult)
                self.dec[f"{res}x{res}_block{index}"] = block(cin, cout, attention=res in attn_resolutions)
        self.out_norm = group_norm(cout, groups=groups)
        self.out_conv = Conv2d(cout, out_channels, 3, init_scale=0.0)

    def embed(self, noise_level: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        """Conditioning vector (B, model_channels * channel_mult_emb) of noise level, label and augmentation."""
        embedding = self.map_noise(noise_level).to(self.dtype)
        if self.map_augment is not None and augment is not None:
            embedding = embedding + self.map_augment(augment.to(self.dtype))
        embedding = self.map_layer1(F.silu(self.map_layer0(embedding)))
        if self.map_label is not None and labels is not None:
            if self.training and self.label_dropout:
                labels = drop_labels(labels, self.label_dropout)
            embedding = embedding + self.map_label(labels.to(self.dtype))
        return F.silu(embedding)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.map_layer1.weight.dtype

    @property
    def time_layers(self) -> Sequence[nn.Linear]:
        """The first layer of the embedded noise level."""
        return [self.map_layer0]

    @property
    def adapter_layers(self) -> Mapping[type[nn.Module], type[nn.Module]]:
        """Convolutions -> convolutions with an adapter."""
        return adapter_layers()

    @property
    def bottleneck(self) -> nn.Module:
        """The encoder's last block."""
        return [layer for name, layer in self.enc.items() if "aux" not in name][-1]

    @property
    def blocks(self) -> list[nn.Module]:
        """The residual blocks, from the first of the encoder to the last of the decoder."""
        return [layer for layer in (*self.enc.values(), *self.dec.values()) if isinstance(layer, UNetBlock)]

    def forward(
        self, x: Tensor, noise_level: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        x = x.to(self.dtype)
        embedding = self.embed(noise_level, labels, augment).to(x.dtype)
        skips: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, embedding) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)
        for layer in self.dec.values():
            if x.shape[1] != layer.in_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = layer(x, embedding) if isinstance(layer, UNetBlock) else layer(x)
        return self.out_conv(F.silu(self.out_norm(x)))
