"""A protocol: everything that can change an evaluation figure, hashed to an id."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from distillkit.files import canonical_json


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ExtractorSpec(_Part):
    """The network whose features are compared."""

    id: str = Field(description="network/layer")
    weights_sha256: str
    dim: int = Field(ge=1)
    dtype: Literal["float32"] = "float32"
    input: str = Field(description="images that the network expects")
    scale: str = Field(description="how features are normalised")


class SampleSpec(_Part):
    """Which samples are drawn."""

    count: int = Field(ge=2)
    first_seed: int = Field(0, ge=0, description="sample i has seed first_seed + i")
    rng: Literal["torch-cpu-mt19937-per-sample"] = "torch-cpu-mt19937-per-sample"
    noise: Literal["float32"] = "float32"
    labels: Literal["index mod classes", "none"] = "index mod classes"
    quantise: Literal["round half up in float32"] = "round half up in float32"


class ReferenceSpec(_Part):
    """What the samples are compared with."""

    id: str
    sha256: str = Field(description="hash of the numbers (n, mean, covariance as little-endian float64)")
    count: int = Field(ge=2)


class EstimatorSpec(_Part):
    """How the figure is computed from features."""

    metric: Literal["frechet"] = "frechet"
    version: int = 1
    ddof: int = 1


class Protocol(_Part):
    """Two figures are comparable exactly when their protocols have one id."""

    name: str = Field(description="for people; not part of the identity")
    extractor: ExtractorSpec
    samples: SampleSpec
    reference: ReferenceSpec
    estimator: EstimatorSpec = EstimatorSpec()

    @property
    def id(self) -> str:
        """`p1-` and the first 16 hex digits of the sha256 of the canonical JSON without the name."""
        body = self.model_dump(mode="json", exclude={"name"})
        return "p1-" + hashlib.sha256(canonical_json(body).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """The figure's name: never FID, which is reserved for the 2015 Inception network."""
        return f"FD[{self.extractor.id}]"
