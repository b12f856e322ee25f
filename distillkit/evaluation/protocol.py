"""A protocol: everything that can change an evaluation figure for one generator, hashed to an id."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from distillkit.data.decoding import Filter
from distillkit.files import canonical_json

INCEPTION_2015 = frozenset(
    {
        "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",  # inception-2015-12-05.pt, TorchScript
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",  # pt_inception-2015-12-05-6726825d.pth
    }
)
"""The files of the 2015 Inception network whose features alone make a Fréchet distance an FID."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ExtractorSpec(_Part):
    """The network whose features are compared."""

    id: str = Field(pattern=r"^[^/\s]+/[^/\s]+$", description="network/layer")
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    dim: int = Field(ge=1)
    dtype: Literal["float32"] = "float32"
    input: str = Field(description="images that the network expects")
    resize: str = Field("none", description="how images come to the network's resolution")
    scale: str = Field("none", description="how features are normalised")


class ImagePreparation(_Part):
    """What is done to given images and to the reference's, before the extractor."""

    resolution: int = Field(ge=1, le=4096)
    filter: Filter

    def __str__(self) -> str:
        return f"centre square, {self.filter} to {self.resolution}"


class SampleSpec(_Part):
    """Which samples are drawn. Sample i has seed `first_seed` + i, whatever the batch, device or process."""

    count: int = Field(ge=2, description="number of samples")
    first_seed: int = Field(0, ge=0, description="sample i has seed first_seed + i")
    rng: Literal["torch-cpu-mt19937-per-sample", "given images", "sobol"] = "torch-cpu-mt19937-per-sample"
    noise: Literal["float32", "none"] = "float32"
    labels: Literal["index mod classes", "drawn after the noise", "none"] = "index mod classes"
    quantise: Literal["round half up in float32", "given", "none"] = "round half up in float32"
    prepare: str = Field("none", description="cropping and resizing of images before the extractor")
    prompts_sha256: str = Field(
        "", pattern=r"^([0-9a-f]{64})?$", description="of the protocol's prompts in order, which go round in turn"
    )


class ReferenceSpec(_Part):
    """What the samples are compared with."""

    id: str
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="of the numbers: n, mean, covariance as little-endian float64"
    )
    count: int = Field(ge=2)


class EstimatorSpec(_Part):
    """How the figure is computed from features."""

    metric: Literal["frechet", "kl", "clip"] = "frechet"
    version: int = 1
    ddof: int = 1


class Protocol(_Part):
    """Two figures are comparable exactly when their protocols have one id."""

    name: str = Field(description="for people; not part of the identity")
    extractor: ExtractorSpec
    samples: SampleSpec
    reference: ReferenceSpec
    estimator: EstimatorSpec = EstimatorSpec()
    clip: ExtractorSpec | None = Field(None, description="by which images are also compared with their prompts")

    @property
    def id(self) -> str:
        """`p1-` and the first 16 hexadecimals of the sha256 of the canonical JSON without the name, and without prompts
        and a CLIP where there are none."""
        body = self.model_dump(mode="json", exclude={"name"})
        if not self.samples.prompts_sha256:
            del body["samples"]["prompts_sha256"]
        if self.clip is None:
            del body["clip"]
        return "p1-" + hashlib.sha256(canonical_json(body).encode()).hexdigest()[:16]

    @property
    def meaning(self) -> str:
        """What the figure is, in a sentence or two for people."""
        if self.estimator.metric == "kl":
            return "divergence to the known distribution in nats, computed on a grid of cells; 0 is that distribution."
        if self.estimator.metric == "clip":
            return f"CLIP score, the mean of {self.extractor.scale} between images and their prompts; more is better."
        text = f"Fréchet distance in the features of {self.extractor.id}, {self.samples.count:,} samples; 0 is "
        return f"{text}{self.reference.id} itself." + ("" if self.label.startswith("FID-") else " Not Inception FID.")

    @property
    def label(self) -> str:
        """The figure's name, computed and never chosen: FID-N for the 2015 Inception network's pool3 features, known by
        their weights' hash, FD[extractor]-N for all others, KL[cells]-N where the truth is known, and CLIP[model]-N
        where images are compared with their prompts alone."""
        extractor = self.extractor
        if self.estimator.metric == "clip":
            return clip_label(extractor, self.samples.count)
        if self.estimator.metric == "kl":
            return f"KL[{extractor.id}]-{self.samples.count}"
        is_fid = extractor.weights_sha256 in INCEPTION_2015 and extractor.id.endswith("/pool3")
        return f"{'FID' if is_fid else f'FD[{extractor.id}]'}-{self.samples.count}"

    @property
    def more_is_better(self) -> bool:
        return self.estimator.metric == "clip"

    def differences(self, other: Protocol) -> list[str]:
        """'samples.count: 5000, not 50000' for every field of the identity that differs."""
        ours, theirs = (dict(_flat(p.model_dump(mode="json", exclude={"name"}))) for p in (self, other))
        keys = [*ours, *(key for key in theirs if key not in ours)]
        pairs = ((key, ours.get(key), theirs.get(key)) for key in keys)
        return [f"{key}: {mine}, not {other}" for key, mine, other in pairs if mine != other]


def clip_label(clip: ExtractorSpec, count: int) -> str:
    """The name of a CLIP score."""
    return f"CLIP[{clip.id.partition('/')[0]}@{clip.weights_sha256[:8]}]-{count}"


def _flat(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{above}{key}.")
        else:
            yield f"{above}{key}", inner
