"""Codecs: between samples, which denoisers see, and what people look at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

Content = Literal["images", "video", "points"]
"""What decoded samples are: (B, C, H, W) uint8, (B, C, T, H, W) uint8, or (B, D) float32."""


class Codec(BaseModel, ABC):
    """Decodes a model's samples (B, ...), and encodes what people have into samples.

    Plain data like a conditioner; weights of an autoencoder are loaded when they are first needed. A plugin offers its
    own by the hook `distillkit_codecs`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    @abstractmethod
    def content(self) -> Content:
        """What decoded samples are."""

    @property
    def dtype(self) -> torch.dtype:
        """Of decoded samples."""
        return torch.float32 if self.content == "points" else torch.uint8

    @abstractmethod
    def decode(self, samples: Tensor) -> Tensor:
        """Samples (B, ...) -> images or video uint8, or points float32."""

    @abstractmethod
    def encode(self, data: Tensor) -> Tensor:
        """Images or video uint8, or points float32 -> samples (B, ...) float32."""

    def distribution(self, data: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and standard deviation of the samples that data may be, both (B, ...) float32: what a variational
        autoencoder gives, whose draws latent models are trained on. No deviation where `encode` says all there is."""
        return self.encode(data), None

    def scaled(self, mean: Tensor, deviation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Samples (B, ...) of what the autoencoder's encoder gives, which latent models see shifted and scaled; the
        deviation with it. As they are where a codec does not scale."""
        return mean, deviation

    def agrees_with(self, other: Codec) -> bool:
        """Whether samples mean the same to both, so that networks of either can be asked about the same sample; where
        an autoencoder's files lie (`parts`) is no matter."""
        return type(self) is type(other) and self.model_dump(exclude={"parts"}) == other.model_dump(exclude={"parts"})

    def decoded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a decoded sample whose sample has `shape`, both without the batch."""
        return shape

    def encoded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the sample of data with `shape`, both without the batch."""
        return shape

    def images(self, samples: Tensor) -> Tensor:
        """Samples (B, ...) -> what is decoded before it is rounded, images in [-1, 1], with gradients: what perceptual
        distances compare. The samples themselves where these are pixels."""
        return samples

    def to(self, device: torch.device | str) -> Self:
        """Move what decodes to a device; itself where there is nothing to move."""
        return self

    def release(self) -> None:
        """Free the memory of weights; they are loaded again when they are needed."""

    @property
    def weight_bytes(self) -> int:
        """Of weights that are in memory now."""
        return 0

    def hashed(self) -> Self:
        """The same with the hashes of all files that it depends on, as descriptions record them."""
        return self


class Pixels(Codec):
    """Samples are pixels in [-1, 1]: (B, C, H, W) images or (B, C, T, H, W) video.

    Decoding rounds half up in float32, as EDM does; encoding is pixels / 127.5 - 1.
    """

    video: bool = False

    @property
    def content(self) -> Content:
        return "video" if self.video else "images"

    def decode(self, samples: Tensor) -> Tensor:
        return (samples.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)

    def encode(self, data: Tensor) -> Tensor:
        return data.float().div_(127.5).sub_(1)


class Points(Codec):
    """Samples are points of a space, (B, D), and stay as they are."""

    @property
    def content(self) -> Content:
        return "points"

    def decode(self, samples: Tensor) -> Tensor:
        return samples.float()

    def encode(self, data: Tensor) -> Tensor:
        return data.float()
