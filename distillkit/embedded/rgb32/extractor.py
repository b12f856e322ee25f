"""Features of colour images of any size, in a small shipped classifier.

The classifier was made by tools/train_rgb_extractor.py on CIFAR-10's training images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import ClassVar

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from distillkit.embedded.assets import asset_hashes, asset_path
from distillkit.embedded.rgb32.classifier import Rgb32CNN
from distillkit.errors import DistillkitError
from distillkit.evaluation.extractor import FeatureExtractor
from distillkit.evaluation.protocol import ExtractorSpec

WEIGHTS = "rgb32cnn.safetensors"
SIDE = 32


class Rgb32Features(FeatureExtractor):
    """Features (B, 128) of images (B, 1 or 3, H, W) uint8, in units of CIFAR-10's total standard deviation.

    Images of another size are resized to 32x32, bilinear and antialiased; grey ones are taken as RGB. Features are
    divided by sqrt(trace of the covariance over CIFAR-10's training images), so that a Fréchet distance of 1 is as far
    as that data set's own spread and 0 is equality.

    Args:
        network: the classifier.
        scale: what its features are divided by.
        weights_sha256: of the file that both come from.
    """

    dim = 128
    classes: ClassVar[int] = 10

    def __init__(self, network: Rgb32CNN, scale: float, weights_sha256: str) -> None:
        super().__init__()
        self.network, self.scale = network.eval().requires_grad_(False), scale
        self.spec = ExtractorSpec(
            id="rgb32cnn/pool128",
            weights_sha256=weights_sha256,
            dim=self.dim,
            input="RGB -1..1",
            resize=f"torch bilinear, antialiased, float32, to {SIDE}",
            scale="divided by sqrt(tr covariance of CIFAR-10's training images)",
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network.features(prepared(pixels)) / self.scale

    def probabilities(self, pixels: Tensor) -> Tensor:
        return self.with_probabilities(pixels)[1]

    def with_probabilities(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(prepared(pixels))
        return features / self.scale, self.network.head(features).softmax(1)


def prepared(pixels: Tensor) -> Tensor:
    """Images (B, 1 or 3, H, W) in 0..255 as the network takes them: (B, 3, 32, 32) in [-1, 1].

    Raises:
        DistillkitError: for another number of channels.
    """
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise DistillkitError(
            f"rgb32cnn takes images of 1 or 3 channels, not samples of {tuple(pixels.shape[1:])}; choose another "
            "--extractor or --protocol"
        )
    images = pixels.float().expand(-1, 3, -1, -1)
    if images.shape[-2:] != (SIDE, SIDE):
        images = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return images / 127.5 - 1


@cache
def rgb32_features() -> Rgb32Features:
    """The shipped extractor, in float32; the file holds its convolutions in float16."""
    tensors = load_file(asset_path(WEIGHTS))
    scale, network = float(tensors.pop("scale")), Rgb32CNN()
    network.load_state_dict(tensors)
    return Rgb32Features(network, scale, asset_hashes()[WEIGHTS])


def offered_extractors() -> Mapping[str, Callable[[], FeatureExtractor]]:
    """What the plugin's hook for extractors returns."""
    return {"rgb32cnn": rgb32_features}
