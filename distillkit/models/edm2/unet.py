"""EDM2's U-Net (Karras et al. 2024, arXiv 2312.02696, Fig. 21, configuration G)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.models.edm2.block import MPBlock
from distillkit.models.edm2.layers import MPConv, MPFourier, mp_cat, mp_silu, mp_sum


class EDM2UNet(nn.Module):
    """F(x, c_noise, labels) on (B, C, H, W): a U-Net without biases, group norms and learned magnitudes.

    Argument names are those stored in the released checkpoints, but for the channels. It computes in the type of its
    weights, and embeds noise level and label in float32.

    Args:
        label_dim: number of classes; one-hot labels (B, label_dim), zero for the null label.
        channel_mult_noise, channel_mult_emb: widths of the noise level's features and of the embedding, in multiples of
            `model_channels`; of the first level and of the widest one by default.
        label_balance, concat_balance: shares of the label in the embedding, and of skips in the decoder's inputs.
        block: arguments of every `MPBlock`.
    """

    casts_inputs = True
    adapter_targets = ("conv_res0", "conv_res1", "attn_qkv", "attn_proj")

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        **block: Any,
    ) -> None:
        super().__init__()
        self.label_dim, self.label_balance, self.concat_balance = label_dim, label_balance, concat_balance
        noise_channels = model_channels * (channel_mult_noise or channel_mult[0])
        embedding_channels = model_channels * (channel_mult_emb or max(channel_mult))
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(noise_channels)
        self.emb_noise = MPConv(noise_channels, embedding_channels)
        self.emb_label = MPConv(label_dim, embedding_channels) if label_dim else None

        widths = [(img_resolution >> level, model_channels * mult) for level, mult in enumerate(channel_mult)]

        def attends(resolution: int) -> dict[str, Any]:
            return {**block, "attention": resolution in attn_resolutions}

        self.enc = nn.ModuleDict()
        first, width = widths[0]
        # A channel of ones stands for the biases that the network does not have.
        self.enc[f"{first}x{first}_conv"] = MPConv(in_channels + 1, width, (3, 3))
        skips, present = [width], width
        for level, (size, width) in enumerate(widths):
            if level:
                self.enc[f"{size}x{size}_down"] = MPBlock(
                    present, present, embedding_channels, side="enc", resample="down", **block
                )
                skips.append(present)
            for index in range(num_blocks):
                self.enc[f"{size}x{size}_block{index}"] = MPBlock(
                    present, width, embedding_channels, side="enc", **attends(size)
                )
                present = width
                skips.append(present)

        self.dec = nn.ModuleDict()
        for level, (size, width) in reversed([*enumerate(widths)]):
            place = f"{size}x{size}"
            if level == len(widths) - 1:
                self.dec[f"{place}_in0"] = MPBlock(
                    present, present, embedding_channels, side="dec", **{**block, "attention": True}
                )
                self.dec[f"{place}_in1"] = MPBlock(present, present, embedding_channels, side="dec", **block)
            else:
                self.dec[f"{place}_up"] = MPBlock(
                    present, present, embedding_channels, side="dec", resample="up", **block
                )
            for index in range(num_blocks + 1):
                self.dec[f"{place}_block{index}"] = MPBlock(
                    present + skips.pop(), width, embedding_channels, side="dec", **attends(size)
                )
                present = width
        self.out_conv = MPConv(present, out_channels, (3, 3))

    def embed(self, noise_level: Tensor, labels: Tensor | None) -> Tensor:
        """Conditioning vector (B, embedding channels) of c_noise (B,) and one-hot labels (B, label_dim)."""
        embedding = self.emb_noise(self.emb_fourier(noise_level))
        if self.emb_label is not None:
            if labels is None:
                labels = embedding.new_zeros(len(embedding), self.label_dim)
            label = self.emb_label((labels * math.sqrt(self.label_dim)).to(noise_level.dtype))
            embedding = mp_sum(embedding, label, self.label_balance)
        return mp_silu(embedding)

    def forward(
        self, x: Tensor, noise_level: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """`augment` is EDM's, and not seen."""
        embedding = self.embed(noise_level, labels)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1).to(self.dtype)
        skips: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, embedding) if isinstance(layer, MPBlock) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            if "block" in name:
                x = mp_cat(x, skips.pop(), self.concat_balance)
            x = layer(x, embedding)
        return self.out_conv(x, self.out_gain)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.out_conv.weight.dtype

    @property
    def time_layers(self) -> Sequence[nn.Module]:
        """The layer of the embedded noise level."""
        return [self.emb_noise]

    @property
    def adapter_layers(self) -> Mapping[type[nn.Module], type[nn.Module]]:
        """Convolutions -> convolutions with an adapter; needs peft."""
        from distillkit.models.edm2.adapter import LoraMPConv

        return {MPConv: LoraMPConv}

    @property
    def bottleneck(self) -> nn.Module:
        """The encoder's last block."""
        return [*self.enc.values()][-1]

    @property
    def blocks(self) -> list[nn.Module]:
        """The residual blocks, from the first of the encoder to the last of the decoder."""
        return [*self._blocks()]

    def _blocks(self) -> Iterator[nn.Module]:
        return (layer for layer in (*self.enc.values(), *self.dec.values()) if isinstance(layer, MPBlock))
