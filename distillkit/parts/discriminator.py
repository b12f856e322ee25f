"""Discriminators on the features of a denoiser: heads for features of any rank, and the losses of a GAN."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillkit.contracts.denoiser import Denoiser, null_features
from distillkit.contracts.teacher import Teacher

BOTTLENECK = ("bottleneck",)


class DiscriminatorHead(nn.Module):
    """Features of noisy samples -> logits (B,), above zero for what looks real: the mean over the layers' heads.

    Args:
        features: of any samples, one tensor for each layer; their shapes are what the heads are built for.
    """

    def __init__(self, features: Sequence[Tensor]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(head_for(feature.shape) for feature in features)

    @classmethod
    def on(cls, denoiser: Denoiser, teacher: Teacher, layers: Sequence[str] = BOTTLENECK) -> DiscriminatorHead:
        """A head for these layers of a denoiser of the teacher's samples and conditions."""
        keys = teacher.conditioner.draw(torch.zeros(1, dtype=torch.float64))
        condition = teacher.conditioner.encode(keys).to(next(denoiser.parameters()).device)
        return cls(null_features(denoiser, teacher.spec.shape, condition, layers))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        logits = [head(f.float()).flatten(1).mean(1) for head, f in zip(self.heads, features, strict=True)]
        return torch.stack(logits).mean(0)


def head_for(shape: Sequence[int]) -> nn.Module:
    """A head for features of this shape, batch included.

    (B, C, H, W) and (B, C, T, H, W): strided convolutions down to one place, 4 wide with stride 2 and the last with
    stride 4 (Yin et al. 2024, arXiv 2405.14867, appendix). (B, T, C), the tokens of a transformer: the same small
    network on every token, whose logits are averaged. (B, C): one linear layer.
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


def generator_loss(fake: Tensor) -> Tensor:
    """softplus(-D(fake)), the generator's non-saturating loss (Goodfellow et al. 2014), from logits (B,); a scalar."""
    return F.softplus(-fake).mean()


def discriminator_loss(fake: Tensor, real: Tensor) -> Tensor:
    """softplus(D(fake)) + softplus(-D(real)), from logits (B,); a scalar."""
    return F.softplus(fake).mean() + F.softplus(-real).mean()


def accuracy(fake: Tensor, real: Tensor) -> Tensor:
    """Share of samples that logits (B,) call by their right name; a scalar, 0.5 is chance."""
    return 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean())
