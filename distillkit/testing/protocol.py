"""The protocol by which the kit's teachers and their students are measured: any content, no download."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from distillkit.contracts.codec import Content
from distillkit.evaluation.extractor import FeatureExtractor
from distillkit.evaluation.protocol import ExtractorSpec
from distillkit.evaluation.reference import Reference

NAME = "conformance"
DIM = 4


class SimpleStatistics(FeatureExtractor):
    """Mean, size, mean absolute value and first number of a sample."""

    takes: ClassVar[tuple[Content, ...]] = ("images", "video", "points")
    spec = ExtractorSpec(id="simple/statistics", weights_sha256="0" * 64, dim=DIM, input="decoded samples")

    def forward(self, pixels: Tensor) -> Tensor:
        flat = pixels.flatten(1).float() / (127.5 if pixels.dtype == torch.uint8 else 1.0)
        return torch.stack([flat.mean(1), flat.square().mean(1).sqrt(), flat.abs().mean(1), flat[:, 0]], dim=1)


def reference() -> Reference:
    """Standard normal statistics: the figures have no meaning beside being the same by every way."""
    return Reference(NAME, 1000, torch.zeros(DIM, dtype=torch.float64), torch.eye(DIM, dtype=torch.float64))


PROTOCOL: dict[str, Any] = {
    "title": "the conformance kit's small teachers",
    "extractor": "simple-statistics",
    "count": 64,
    "reference": {"id": NAME, "count": 1000, "load": reference},
    "teachers": ("conformance-*",),
}
