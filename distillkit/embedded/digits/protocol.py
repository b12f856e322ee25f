"""The embedded evaluation: Fréchet distance of 8x8 digits in the features of a small shipped classifier.

The classifier and its reference statistics were made by tools/train_digits_classifier.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from distillkit.embedded.assets import asset_hashes, asset_path
from distillkit.embedded.digits.classifier import DigitsCNN
from distillkit.embedded.digits.data import load_digits
from distillkit.evaluation.extractor import FeatureExtractor, scaled
from distillkit.evaluation.protocol import ExtractorSpec
from distillkit.evaluation.reference import Reference

WEIGHTS, REFERENCE = "digits8cnn.safetensors", "digits8-reference.safetensors"


class DigitsFeatures(FeatureExtractor):
    """Features (B, 64) of digit images (B, 1, 8, 8) uint8, in units of the reference's total standard deviation.

    Divided by sqrt(trace of the reference's covariance), so that a Fréchet distance of 1 is as far as the data
    set's own spread and 0 is equality.
    """

    dim = 64
    classes = 10

    def __init__(self, network: DigitsCNN, scale: float, weights_sha256: str) -> None:
        super().__init__()
        self.network, self.scale = network.eval().requires_grad_(False), scale
        self.spec = ExtractorSpec(
            id="digits8cnn/fc64",
            weights_sha256=weights_sha256,
            dim=self.dim,
            input="(1, 8, 8) in [-1, 1]",
            scale="divided by sqrt(tr covariance of the reference)",
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network.features(self._images(pixels)) / self.scale

    def probabilities(self, pixels: Tensor) -> Tensor:
        return self.with_probabilities(pixels)[1]

    def with_probabilities(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(self._images(pixels))
        return features / self.scale, self.network.head(features).softmax(1)

    @staticmethod
    def _images(pixels: Tensor) -> Tensor:
        return scaled(pixels, (1, 8, 8), "digits8cnn", "digits")


@cache
def digits_features() -> DigitsFeatures:
    """The shipped extractor."""
    network = DigitsCNN()
    network.load_state_dict(load_file(asset_path(WEIGHTS)))
    return DigitsFeatures(network, float(load_file(asset_path(REFERENCE))["scale"]), asset_hashes()[WEIGHTS])


@cache
def digits_reference() -> Reference:
    """Moments and features of all 1,797 images."""
    tensors, extractor = load_file(asset_path(REFERENCE)), digits_features()
    with torch.no_grad():
        features = extractor(load_digits()[0])
    return Reference("digits8/all", 1797, tensors["mean"], tensors["covariance"], features)


DIGITS8: Mapping[str, Any] = {
    "title": "the embedded digits; no download, minutes on a CPU",
    "extractor": "digits8cnn",
    "count": 5000,
    "labels": "index mod classes",
    "reference": {"id": "digits8/all", "count": 1797, "load": digits_reference},
    "teachers": ["digits"],
    "shape": (1, 8, 8),
    "classes": 10,
}
"""The protocol: also the default for other teachers that make images of this shape in ten classes."""


def offered_protocols() -> Mapping[str, Mapping[str, Any]]:
    """What the plugin's hook for protocols returns."""
    return {"digits8": DIGITS8}


def offered_extractors() -> Mapping[str, Callable[[], FeatureExtractor]]:
    """What the plugin's hook for extractors returns."""
    return {"digits8cnn": digits_features}
