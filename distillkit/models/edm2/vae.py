"""EDM2's latents of ImageNet-512: those of Stable Diffusion's autoencoder, standardised by channel."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from distillkit.contracts.codec import Codec, Content
from distillkit.models.diffusers.parts import PipelineParts
from distillkit.models.diffusers.vae import AutoencoderKL, Channels, Deviations

MEANS, STDS = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)
"""Of the codes of ImageNet-512's images by channel, as EDM2 assumes them."""
WEIGHTS = "hf:stabilityai/sd-vae-ft-mse"
"""The autoencoder that EDM2's published models were trained with."""


class UnitPixels(Codec):
    """Samples are pixels in [0, 1]; decoding cuts fractions of a grey value off, as EDM2 does."""

    @property
    def content(self) -> Content:
        return "images"

    def decode(self, samples: Tensor) -> Tensor:
        return samples.float().clamp(0, 1).mul(255).to(torch.uint8)

    def encode(self, data: Tensor) -> Tensor:
        return data.float() / 255

    def images(self, samples: Tensor) -> Tensor:
        return 2 * samples - 1


class StabilityVAE(AutoencoderKL):
    """Latents (B, C, h, w) = (z - means) / stds * scaling, of mean 0 and standard deviation 0.5, z the mean of the
    autoencoder's code of an image in [0, 1]: EDM2 gives it pixels in half the range that it was trained for, and its
    published models know no others.
    """

    parts: PipelineParts = PipelineParts(source=WEIGHTS)
    scaling: float = Field(0.5, gt=0, le=1e6)
    means: Channels = MEANS
    stds: Deviations = STDS

    @property
    def _pixels(self) -> Codec:
        return UnitPixels()
