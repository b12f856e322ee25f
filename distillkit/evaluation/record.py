"""Records: one measured result each, checked when written and when read; quoted figures are kept apart from them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from distillkit.contracts.guide import GuideSpec
from distillkit.errors import DistillkitError, UsageError
from distillkit.evaluation.digits import with_error
from distillkit.evaluation.frechet import jackknife_error
from distillkit.evaluation.protocol import Protocol
from distillkit.files import canonical_json, write_json
from distillkit.reading import Missing, Unreadable, adapted, check_format, read_json


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Part):
    """One number with what is known of its error."""

    value: float
    estimator: str = Field(description="name and version, such as frechet@1")
    standard_error: float | None = Field(None, ge=0, description="delete-a-group jackknife")
    corrected: float | None = Field(None, description="without the bias of order 1/N, by the same jackknife")
    leave_one_out: tuple[float, ...] = Field((), description="values without each group; for paired differences")
    terms: dict[str, float] = Field(default_factory=dict, description="parts that the value is the sum of")

    @property
    def text(self) -> str:
        """ "0.00106 ± 0.00014", for people."""
        return with_error(self.value, self.standard_error)


class Subject(_Part):
    """What was measured."""

    kind: Literal["student", "teacher", "pipeline", "images"]
    name: str = Field(max_length=1000)
    weights_sha256: str = Field("", max_length=200, description="of the generator; the images' fingerprint for images")
    teacher: str = ""
    method: str = ""
    sampler: dict[str, Any] = Field(default_factory=dict)
    guidance: float = 1.0
    guide: GuideSpec | None = Field(None, description="the network that guidance led away from; none for no condition")
    precision: str = "fp32"
    remarks: tuple[str, ...] = Field((), description="what favours its figures, such as a loss in the same features")


class Selection(_Part):
    """How the measured weights were chosen among others."""

    checkpoints_scored: int = Field(1, ge=1)
    selected_by: str = "none"
    seeds_disjoint: bool = Field(True, description="scores that chose it used other seeds than this one")


class Record(_Part):
    """One generator under one protocol."""

    format: Literal[2] = 2
    kind: Literal["measured"] = "measured"
    subject: Subject
    protocol: Protocol
    protocol_id: str
    label: str
    figures: dict[str, Figure] = Field(min_length=1, description="the protocol's own under `label`, others beside it")
    nfe: float | None = Field(None, ge=0, description="network evaluations of a sample, measured")
    images_per_second: float | None = None
    samples_sha256: str = Field(
        "", description="of the hashes of all images in order; informative, rounding may differ by device"
    )
    selection: Selection = Selection()
    remarks: tuple[str, ...] = ()
    seconds: float = Field(ge=0, description="of the evaluation, since it was last resumed")
    environment: dict[str, Any] = Field(default_factory=dict)
    created: str = ""
    digest: str = Field("", description="sha256 of the rest")

    @property
    def figure(self) -> Figure:
        """The protocol's own figure."""
        return self.figures[self.label]

    def sealed(self) -> Record:
        """The record with its digest."""
        return self.model_copy(update={"digest": digest_of(self.model_dump(mode="json"))})


class Quoted(_Part):
    """A published figure: shown beside measured ones, never ranked with them."""

    format: Literal[2] = 2
    kind: Literal["quoted"]
    name: str
    label: str = Field(description="as published, such as FID-50k")
    value: float
    nfe: float | None = None
    protocol: str = Field(description="what is known of how it was measured")
    source: str = Field(description="publication and table")


FORMAT = 2
AnyRecord = Annotated[Record | Quoted, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[Record | Quoted] = TypeAdapter(AnyRecord)


def digest_of(body: Mapping[str, Any]) -> str:
    """sha256 of a record's JSON as it is written, without the digest: fields that came later leave it alone."""
    rest = {key: value for key, value in body.items() if key != "digest"}
    return hashlib.sha256(canonical_json(rest).encode()).hexdigest()


def schema() -> dict[str, Any]:
    """The JSON schema of records; the package ships it as record.schema.json."""
    return _ADAPTER.json_schema()


def write_record(path: Path, record: Record) -> Record:
    """Seal and write a record."""
    sealed = record.sealed()
    write_json(path, sealed.model_dump(mode="json"))
    return sealed


def read_record(path: Path) -> Record | Quoted:
    """Read a record and refuse one that does not hold together.

    Raises:
        UsageError: when there is no such file.
        DistillkitError: when it is no record, was edited, or its protocol does not hash to its id.
    """
    try:
        body = read_json(path)
    except Missing as error:
        raise UsageError(f"{path}: no such record") from error
    check_format(body, FORMAT, str(path))
    try:
        record = adapted(_ADAPTER, body, str(path))
    except Unreadable as error:
        raise Unreadable(f"{path} is not a record: {str(error).partition(': ')[2]}") from error
    if isinstance(record, Quoted):
        return record
    if record.protocol.id != record.protocol_id or record.protocol.label != record.label:
        raise DistillkitError(
            f"{path}: refused: its protocol hashes to {record.protocol.id} ({record.protocol.label}), not to "
            f"{record.protocol_id} ({record.label}); it was edited"
        )
    if digest_of(body) != record.digest:
        raise DistillkitError(f"{path}: refused: it does not match its digest; it was edited after it was measured")
    return record


def paired_difference(a: Figure, b: Figure) -> tuple[float, float | None]:
    """a - b and its standard error where both were measured on the same samples' groups; else None."""
    difference = a.value - b.value
    if not a.leave_one_out or len(a.leave_one_out) != len(b.leave_one_out):
        return difference, None
    return difference, jackknife_error([x - y for x, y in zip(a.leave_one_out, b.leave_one_out, strict=True)])
