"""How well pictures follow their sentences, and how far they are from drawn ones: the protocol of the teacher `shapes`.

Both figures are read off the same samples by a small shipped classifier. Its sentences are none of those that ship for
training.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import ClassVar

from safetensors.torch import load_file
from torch import Tensor

from distillkit.contracts.text import prompts_sha256
from distillkit.embedded.assets import asset_hashes, asset_path
from distillkit.embedded.shapes.classifier import WEIGHTS, ShapesCNN, agreement, shapes_cnn
from distillkit.embedded.shapes.world import SIDE, distinct_scenes, scene_of, sentence, shipped_prompts
from distillkit.evaluation.extractor import FeatureExtractor, scaled
from distillkit.evaluation.features import GROUPS, Kept, groups_of
from distillkit.evaluation.frechet import Jackknife
from distillkit.evaluation.measure import Measure, frechet_figure
from distillkit.evaluation.protocol import ExtractorSpec, Protocol, SampleSpec
from distillkit.evaluation.record import Figure
from distillkit.evaluation.reference import Reference

REFERENCE = "shapes-reference.safetensors"
COUNT = 2000
"""Samples, each of a sentence of its own."""
LOGITS = 29
"""Of all attributes."""
SHOWN = ("colour", "shape", "size", "relation", "count", "background")
"""Attributes that are figures of their own."""


class ShapesFeatures(FeatureExtractor):
    """Features (B, 128) of pictures (B, 3, 32, 32) uint8, in units of the reference's total standard deviation."""

    dim = ShapesCNN.dim
    classes = LOGITS

    def __init__(self, network: ShapesCNN, scale: float, weights_sha256: str) -> None:
        super().__init__()
        self.network, self.scale = network, scale
        self.spec = ExtractorSpec(
            id="shapescnn/fc128",
            weights_sha256=weights_sha256,
            dim=self.dim,
            input=f"(3, {SIDE}, {SIDE}) in [-1, 1]",
            scale="divided by sqrt(tr covariance of the reference)",
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network.features(_images(pixels)) / self.scale

    def probabilities(self, pixels: Tensor) -> Tensor:
        """(B, 29) logits of the attributes, from which the alignment is read."""
        return self.with_probabilities(pixels)[1]

    def with_probabilities(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(_images(pixels))
        return features / self.scale, self.network.head(features)


def _images(pixels: Tensor) -> Tensor:
    return scaled(pixels, (3, SIDE, SIDE), "shapescnn", "pictures")


@cache
def shapes_features() -> ShapesFeatures:
    """The shipped extractor."""
    network, scale = shapes_cnn()
    return ShapesFeatures(network, scale, asset_hashes()[WEIGHTS])


@cache
def shapes_reference() -> Reference:
    """Moments of drawn pictures."""
    tensors = load_file(asset_path(REFERENCE))
    return Reference("shapes/drawn", int(tensors["count"]), tensors["mean"], tensors["covariance"])


@cache
def held_out_prompts(count: int = COUNT) -> tuple[str, ...]:
    """Sentences that are not among the shipped ones, in random order."""
    shipped = set(shipped_prompts())
    drawn = (sentence(scene) for scene in distinct_scenes(len(shipped) + 4 * count, seed=1))
    return tuple(text for text in drawn if text not in shipped)[:count]


class ShapesMeasure(Measure):
    """Fréchet distance to drawn shapes, and prompt alignment: the share of attributes that are as the sentence says."""

    metrics: ClassVar[tuple[str, ...]] = ("fd",)

    def __init__(self) -> None:
        extractor, prompts = shapes_features(), held_out_prompts()
        protocol = Protocol(
            name="shapes",
            extractor=extractor.spec,
            samples=SampleSpec(count=COUNT, labels="index mod classes", prompts_sha256=prompts_sha256(prompts)),
            reference=shapes_reference().spec,
        )
        super().__init__(protocol, extractor, prompts=prompts)

    def row(self, metrics: Sequence[str]) -> int:
        return super().row(metrics) + LOGITS

    def figures(self, kept: Kept, metrics: Sequence[str]) -> tuple[dict[str, Figure], list[str]]:
        count, logits = len(kept), kept.probabilities
        asked = [scene_of(prompt) for prompt in self.prompts]
        scenes = [asked[k % len(asked)] for k in range(count)]
        shares = agreement(logits, scenes)
        found = {"alignment": shares["all"], **{f"alignment/{kind}": shares[kind] for kind in SHOWN}}
        figures = {self.protocol.label: frechet_figure(kept, shapes_reference())}
        figures |= {f"{name}[shapescnn]-{count}": _share(values) for name, values in found.items()}
        return figures, []


def _share(values: Tensor) -> Figure:
    """The mean over the samples that have a value, with its jackknife error."""
    there = ~values.isnan()
    mean = values[there].mean().item()
    if len(values) < 2 * GROUPS:
        return Figure(value=mean, estimator="agreement@1")
    groups = groups_of(len(values))
    left_out = tuple(values[there & (groups != group)].mean().item() for group in range(GROUPS))
    jackknife = Jackknife(mean, left_out)
    return Figure(value=mean, estimator="agreement@1", standard_error=jackknife.standard_error, leave_one_out=left_out)
