"""A record of anything."""

from __future__ import annotations

from distillkit.evaluation.protocol import ExtractorSpec, Protocol, ReferenceSpec, SampleSpec
from distillkit.evaluation.record import Figure, Record, Subject

HASH = "0" * 64


def record_of(name: str) -> Record:
    """A record whose subject has this name."""
    protocol = Protocol(
        name="own", extractor=ExtractorSpec(id="net/layer", weights_sha256=HASH, dim=2, input="any"),
        samples=SampleSpec(count=2), reference=ReferenceSpec(id="data", sha256=HASH, count=2),
    )  # fmt: skip
    return Record(
        subject=Subject(kind="student", name=name), protocol=protocol, protocol_id=protocol.id, label=protocol.label,
        figures={protocol.label: Figure(value=1.0, estimator="frechet@1")}, nfe=1.0, seconds=1.0,
    )  # fmt: skip
