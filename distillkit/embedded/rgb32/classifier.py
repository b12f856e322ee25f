"""The small classifier of 32x32 colour images whose last features measure generators without any download."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution, batch normalisation and ReLU: (B, inputs, H, W) -> (B, outputs, H, W)."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    """x + two convolutions of x: (B, width, H, W) -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = convolution(width, width), convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class Rgb32CNN(nn.Module):
    """A residual network of ten convolutions: images (B, 3, 32, 32) in [-1, 1] -> logits (B, 10); 907,306 parameters.

    Evaluate it in eval mode: batch normalisation then uses its stored moments, and an image's features do not depend
    on the rest of the batch.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(3, 32),
            convolution(32, 64), nn.MaxPool2d(2), Residual(64),
            convolution(64, 128), nn.MaxPool2d(2), Residual(128),
            convolution(128, 128), nn.MaxPool2d(2), Residual(128),
        )  # fmt: skip
        self.head = nn.Linear(128, classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, 128) non-negative activations of the last layer, averaged over the image."""
        return F.adaptive_avg_pool2d(self.body(x), 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
