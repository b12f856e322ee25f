"""Discriminators on the features of a denoiser: heads for features of any rank, and the losses of a GAN."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillkit.contracts.denoiser import Denoiser, device_of, null_features
from distillkit.contracts.teacher import Teacher

BOTTLENECK = ("bottleneck",)


class DiscriminatorHead(nn.Module):
    """Features of noisy samples -> logits (B, N), above zero for what looks real: one for each layer, and for each of
    its places where the layer's head judges places.

    Args:
        features: of any samples, one tensor for each layer; their shapes are what the heads are built for.
        head: makes the head for features of a shape, batch included.
    """

    def __init__(self, features: Sequence[Tensor], head: Callable[[Sequence[int]], nn.Module] | None = None) -> None:
        super().__init__()
        self.heads = nn.ModuleList((head or head_for)(feature.shape) for feature in features)

    @classmethod
    def on(
        cls,
        denoiser: Denoiser,
        teacher: Teacher,
        layers: Sequence[str] = BOTTLENECK,
        head: Callable[[Sequence[int]], nn.Module] | None = None,
    ) -> DiscriminatorHead:
        """A head for these layers of a denoiser of the teacher's samples and conditions."""
        keys = teacher.conditioner.draw(torch.zeros(1, dtype=torch.float64))
        condition = teacher.conditioner.encode(keys).to(device_of(denoiser))
        return cls(null_features(denoiser, teacher.spec.shape, condition, layers), head)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return torch.cat([head(f.float()).flatten(1) for head, f in zip(self.heads, features, strict=True)], dim=1)


def head_for(shape: Sequence[int]) -> nn.Module:
    """A head for features of this shape, batch included, with one logit for a map and for a point.

    (B, C, H, W) and (B, C, T, H, W): strided convolutions down to one place, 4 wide with stride 2 and the last with
    stride 4 (Yin et al. 2024, arXiv 2405.14867, appendix). (B, T, C), the tokens of a transformer: the same small
    network on every token. (B, C): one linear layer.
    """
    if len(shape) == 2:
        return nn.Linear(shape[1], 1)
    if len(shape) == 3:
        width = shape[2]
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
    return _convolutions(shape[1], tuple(shape[2:]))


def _convolutions(channels: int, size: tuple[int, ...]) -> nn.Sequential:
    convolution: Callable[..., nn.Module] = {2: nn.Conv2d, 3: nn.Conv3d}[len(size)]
    layers: list[nn.Module] = []
    while max(size) > 1:
        kernel = tuple(min(side, 4) for side in size)
        stride = tuple(2 if side > 4 else side for side in size)
        padding = tuple(1 if side > 4 else 0 for side in size)
        layers += [
            convolution(channels, channels, kernel, stride, padding),
            nn.GroupNorm(_groups(channels), channels),
            nn.SiLU(),
        ]
        size = tuple(side // 2 if side > 4 else 1 for side in size)
    return nn.Sequential(*layers, convolution(channels, 1, 1))


def _groups(channels: int) -> int:
    """32 groups as in the paper's code, fewer where a group would have less than 8 channels: at the last place a group
    is normalised over its channels alone, and what it can still say shrinks with them."""
    most = max(1, min(32, channels // 8))
    return max(groups for groups in range(1, most + 1) if channels % groups == 0)


class PlaceHead(nn.Module):
    """Logits of every place of a map (B, C, ...) of two or three axes, as wide as the map: a pointwise and a residual
    layer of 3 places, each normalised, then one logit.

    The heads of Sauer et al. 2023 (StyleGAN-T, arXiv 2301.09515), with convolutions for maps as in their 2024 (arXiv
    2403.12015), GroupNorm for their local batch norm, and without spectral norm, which R1 replaces.
    """

    def __init__(self, channels: int, axes: int) -> None:
        super().__init__()
        convolution: Callable[..., nn.Module] = {2: nn.Conv2d, 3: nn.Conv3d}[axes]

        def layer(width: int) -> nn.Module:
            return nn.Sequential(
                convolution(channels, channels, width, padding=width // 2),
                nn.GroupNorm(_groups(channels), channels),
                nn.LeakyReLU(0.2),
            )

        self.first, self.second, self.last = layer(1), layer(3), convolution(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.last((hidden + self.second(hidden)) * 0.5**0.5)


def place_head_for(shape: Sequence[int]) -> nn.Module:
    """A head for features of this shape, batch included, with logits of every place: `PlaceHead` for maps, `head_for`
    for tokens and points."""
    return PlaceHead(shape[1], len(shape) - 2) if len(shape) > 3 else head_for(shape)


def generator_loss(fake: Tensor) -> Tensor:
    """softplus(-D(fake)), the generator's non-saturating loss (Goodfellow et al. 2014), from logits (B, ...)."""
    return F.softplus(-fake).mean()


def discriminator_loss(fake: Tensor, real: Tensor) -> Tensor:
    """softplus(D(fake)) + softplus(-D(real)), from logits (B, ...); a scalar."""
    return F.softplus(fake).mean() + F.softplus(-real).mean()


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """-D(fake) (Lim & Ye 2017, arXiv 1705.02894), from logits (B, ...); a scalar."""
    return -fake.mean()


def hinge_discriminator_loss(fake: Tensor, real: Tensor) -> Tensor:
    """max(0, 1 + D(fake)) + max(0, 1 - D(real)), from logits (B, ...); a scalar."""
    return F.relu(1 + fake).mean() + F.relu(1 - real).mean()


@dataclass(frozen=True)
class GanLoss:
    """Both sides of a GAN.

    Args:
        generator: the generator's loss, from the logits of its samples.
        discriminator: the discriminator's, from the logits of generated and of real samples.
    """

    generator: Callable[[Tensor], Tensor]
    discriminator: Callable[[Tensor, Tensor], Tensor]


GanLossName = Literal["non-saturating", "hinge"]

GAN_LOSSES: Mapping[GanLossName, GanLoss] = {
    "non-saturating": GanLoss(generator_loss, discriminator_loss),
    "hinge": GanLoss(hinge_generator_loss, hinge_discriminator_loss),
}


def accuracy(fake: Tensor, real: Tensor) -> Tensor:
    """Share of generated and of real samples that logits (B, ...) classify correctly; a scalar, 0.5 is chance."""
    return 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean())
