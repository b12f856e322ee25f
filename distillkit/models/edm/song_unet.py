"""SongUNet: DDPM++ and NCSN++ (Song et al. 2021, arXiv 2011.13456) as re-implemented for EDM."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillkit.models.edm.blocks import (
    ADAPTED,
    Conv2d,
    FourierEmbedding,
    PositionalEmbedding,
    UNetBlock,
    adapter_layers,
    drop_labels,
    group_norm,
    linear,
)


class SongUNet(nn.Module):
    """U-Net F(x, c_noise, labels, augment) on (B, C, H, W); EDM's CIFAR-10, FFHQ and AFHQv2 networks.

    DDPM++ is `positional` embedding with `standard` encoder and decoder; NCSN++ is `fourier` embedding,
    `residual` encoder, `channel_mult_noise=2` and `resample_filter=(1, 3, 3, 1)`.
    Argument names are those stored in the released checkpoints. It computes in the type of its weights.

    Raises:
        ValueError: for an unknown embedding, encoder or decoder type.
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
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("embedding_type", embedding_type, ("positional", "fourier")),
            ("encoder_type", encoder_type, ("standard", "skip", "residual")),
            ("decoder_type", decoder_type, ("standard", "skip")),
        ):
            if value not in allowed:
                raise ValueError(f"SongUNet {name} is {value!r}; known: {', '.join(allowed)}")
        self.label_dim, self.label_dropout = label_dim, label_dropout
        noise_channels, embedding_channels = model_channels * channel_mult_noise, model_channels * channel_mult_emb

        def block(cin: int, cout: int, *, attention: bool = False, resample: str | None = None) -> UNetBlock:
            return UNetBlock(
                cin,
                cout,
                embedding_channels,
                resample=resample,
                heads=int(attention),
                dropout=dropout,
                skip_scale=math.sqrt(0.5),
                eps=1e-6,
                resample_filter=resample_filter,
                project_resampled_skip=True,
                adaptive_scale=False,
            )

        self.map_noise = (
            PositionalEmbedding(noise_channels, endpoint=True)
            if embedding_type == "positional"
            else FourierEmbedding(noise_channels)
        )
        self.map_label = linear(label_dim, noise_channels) if label_dim else None
        self.map_augment = linear(augment_dim, noise_channels, bias=False) if augment_dim else None
        self.map_layer0 = linear(noise_channels, embedding_channels)
        self.map_layer1 = linear(embedding_channels, embedding_channels)

        self.enc = nn.ModuleDict()
        cout, aux = in_channels, in_channels
        skips: list[int] = []
        for level, mult in enumerate(channel_mult):
            res = img_resolution >> level
            if level == 0:
                cout = model_channels
                self.enc[f"{res}x{res}_conv"] = Conv2d(in_channels, cout, 3)
            else:
                self.enc[f"{res}x{res}_down"] = block(cout, cout, resample="down")
                shrink: dict[str, Any] = {"resample": "down", "resample_filter": resample_filter}
                if encoder_type == "skip":
                    self.enc[f"{res}x{res}_aux_down"] = Conv2d(aux, aux, 0, **shrink)
                    self.enc[f"{res}x{res}_aux_skip"] = Conv2d(aux, cout, 1)
                if encoder_type == "residual":
                    self.enc[f"{res}x{res}_aux_residual"] = Conv2d(aux, cout, 3, fused=True, **shrink)
                    aux = cout
            skips.append(cout)
            for index in range(num_blocks):
                cin, cout = cout, model_channels * mult
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
                self.dec[f"{res}x{res}_up"] = block(cout, cout, resample="up")
            for index in range(num_blocks + 1):
                cin, cout = cout + skips.pop(), model_channels * mult
                attention = index == num_blocks and res in attn_resolutions
                self.dec[f"{res}x{res}_block{index}"] = block(cin, cout, attention=attention)
            if decoder_type == "skip" or level == 0:
                if decoder_type == "skip" and level < last:
                    self.dec[f"{res}x{res}_aux_up"] = Conv2d(
                        out_channels, out_channels, 0, resample="up", resample_filter=resample_filter
                    )
                self.dec[f"{res}x{res}_aux_norm"] = group_norm(cout, eps=1e-6)
                self.dec[f"{res}x{res}_aux_conv"] = Conv2d(cout, out_channels, 3, init_scale=0.0)

    def embed(self, noise_level: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        """Conditioning vector (B, model_channels * channel_mult_emb) of noise level, label and augmentation."""
        embedding = self.map_noise(noise_level)
        # This family's weights expect sines before cosines.
        embedding = embedding.reshape(embedding.shape[0], 2, -1).flip(1).reshape(embedding.shape).to(self.dtype)
        if self.map_label is not None and labels is not None:
            if self.training and self.label_dropout:
                labels = drop_labels(labels, self.label_dropout)
            embedding = embedding + self.map_label((labels * math.sqrt(self.label_dim)).to(self.dtype))
        if self.map_augment is not None and augment is not None:
            embedding = embedding + self.map_augment(augment.to(self.dtype))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))

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
        aux = x
        for name, layer in self.enc.items():
            if "aux_down" in name:
                aux = layer(aux)
            elif "aux_skip" in name:
                x = skips[-1] = x + layer(aux)
            elif "aux_residual" in name:
                x = skips[-1] = aux = (x + layer(aux)) * math.sqrt(0.5)
            else:
                x = layer(x, embedding) if isinstance(layer, UNetBlock) else layer(x)
                skips.append(x)
        out: Tensor | None = None
        normalised = x
        for name, layer in self.dec.items():
            if "aux_up" in name:
                out = layer(out)
            elif "aux_norm" in name:
                normalised = layer(x)
            elif "aux_conv" in name:
                rgb = layer(F.silu(normalised))
                out = rgb if out is None else out + rgb
            else:
                if x.shape[1] != layer.in_channels:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = layer(x, embedding)
        assert out is not None
        return out
