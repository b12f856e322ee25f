"""Named protocols, as files; their networks and reference statistics, verified by hash before they are used."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distillkit.data.decoding import Filter
from distillkit.downloads import download, offline
from distillkit.errors import DistillkitError, UsageError
from distillkit.embedded.digits.protocol import digits_features, digits_reference
from distillkit.evaluation.extractor import (
    INCEPTION_FILE,
    INCEPTION_SHA256,
    INCEPTION_URL,
    DINOv2,
    FeatureExtractor,
    Inception,
)
from distillkit.evaluation.protocol import Protocol, SampleSpec
from distillkit.evaluation.reference import Reference, load_reference
from distillkit.evaluation.score import Ruler
from distillkit.files import cache_folder, read_recorded, write_json
from distillkit.progress import Reporter
from distillkit.registry import blaming, registry, unknown


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReferencePreset(_Part):
    """Where a protocol's reference statistics come from."""

    id: str
    count: int = Field(ge=2)
    file: str = Field("", description="name in the cache's evaluation folder; empty for embedded ones")
    url: str = ""


class ImagePreparation(_Part):
    """What is done to given images and to the reference's, before the extractor."""

    resolution: int = Field(ge=1)
    filter: Filter


class ProtocolPreset(_Part):
    """A protocol by name, before its hashes are known."""

    name: str
    title: str
    extractor: str
    count: int = Field(ge=2)
    labels: Literal["index mod classes", "drawn after the noise", "none"]
    reference: ReferencePreset
    teachers: tuple[str, ...] = Field((), description="shell patterns of the teachers that it is the default for")
    images: ImagePreparation | None = None


@cache
def presets() -> Mapping[str, ProtocolPreset]:
    """All protocols: those that ship, and those of plugins.

    Raises:
        DistillkitError: when a plugin's protocol is malformed; names the plugin.
    """
    folder = files("distillkit.evaluation") / "presets"
    found = (
        json.loads(f.read_text(encoding="utf-8"))
        for f in sorted(folder.iterdir(), key=lambda f: f.name)
        if f.name.endswith(".json")
    )
    shipped = {preset.name: preset for preset in map(ProtocolPreset.model_validate, found)}
    for name, offered in registry().protocols.items():
        try:
            shipped.setdefault(name, ProtocolPreset.model_validate({"name": name, **offered.value}))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DistillkitError(f"the protocol {name} of {offered.origin}: {place}: {first['msg']}") from error
    return shipped


def preset(name: str) -> ProtocolPreset:
    """The protocol of that name.

    Raises:
        UsageError: for an unknown name, with the nearest known one.
    """
    if name not in presets():
        raise UsageError(unknown("protocol", name, presets(), "distillkit protocols"))
    return presets()[name]


def preset_for(teacher: str) -> ProtocolPreset | None:
    """The protocol that a teacher of this name is measured with by default."""
    return next((p for p in presets().values() if any(fnmatch(teacher, pattern) for pattern in p.teachers)), None)


def evaluation_folder() -> Path:
    """Where networks, reference statistics and their lock lie."""
    return cache_folder() / "evaluation"


def lock_file() -> Path:
    return evaluation_folder() / "lock.json"


EXTRACTORS: Mapping[str, Callable[[], FeatureExtractor]] = {
    "digits8cnn": digits_features,
    "inception": lambda: Inception(evaluation_folder(), "in-graph"),
    "inception-clean": lambda: Inception(evaluation_folder(), "clean"),
    "dinov2": DINOv2,
}


def extractor_by_name(name: str) -> FeatureExtractor:
    """A feature extractor of this package or of a plugin.

    Raises:
        UsageError: for an unknown name.
        DistillkitError: when its weights are missing, wrong, or its plugin fails.
    """
    if name in EXTRACTORS:
        return EXTRACTORS[name]()
    offered = registry().extractors
    if name not in offered:
        raise UsageError(unknown("extractor", name, [*EXTRACTORS, *offered], "distillkit protocols"))
    with blaming(f"extractor {name}", offered[name].origin, "fails"):
        extractor = offered[name].value()
    if not isinstance(extractor, FeatureExtractor):
        raise DistillkitError(f"extractor {name} ({offered[name].package}) is not a FeatureExtractor")
    return extractor


def ruler_for_preset(
    chosen: ProtocolPreset, *, count: int | None = None, first_seed: int = 0, reference: Reference | None = None,
    extractor: FeatureExtractor | None = None,
) -> Ruler:  # fmt: skip
    """The protocol with its extractor and reference, verified.

    Args:
        count: another number of samples than the protocol's, which makes it another protocol.
        reference: other statistics than the protocol's.
        extractor: another network than the protocol's.

    Raises:
        DistillkitError: when a file is missing, wrong, or has no recorded hash yet; says what to do.
    """
    reference = reference or reference_of(chosen)
    extractor = extractor or extractor_by_name(chosen.extractor)
    if extractor.spec.dim != len(reference.mean):
        raise DistillkitError(
            f"the reference {reference.id} has {len(reference.mean)} features and {extractor.spec.id} "
            f"{extractor.spec.dim}: it was made with another extractor"
        )
    prepare = f"centre square, {chosen.images.filter} to {chosen.images.resolution}" if chosen.images else "none"
    protocol = Protocol(
        name=chosen.name,
        extractor=extractor.spec,
        samples=SampleSpec(count=count or chosen.count, first_seed=first_seed, labels=chosen.labels, prepare=prepare),
        reference=reference.spec,
    )
    return Ruler(protocol, extractor, reference)


def reference_of(chosen: ProtocolPreset) -> Reference:
    """A protocol's reference statistics, which must match the hash that was recorded for them.

    Raises:
        DistillkitError: when they are missing, have no recorded hash (it is shown), or another one.
    """
    if not chosen.reference.file:
        return digits_reference()
    path = evaluation_folder() / chosen.reference.file
    if not path.is_file():
        how = (
            f"`distillkit protocols fetch {chosen.name}`, or place {chosen.reference.url} at {path}"
            if chosen.reference.url
            else f"`distillkit reference make --protocol {chosen.name} --data IMAGES --output {path}`"
        )
        raise DistillkitError(f"the reference statistics of {chosen.name} are not here. Get them by {how}")
    key = "fd_dinov2" if chosen.extractor == "dinov2" else "fid"
    reference = load_reference(path, name=chosen.reference.id, count=chosen.reference.count, key=key)
    found, known = reference.spec.sha256, pinned(chosen.name)
    if not known:
        raise DistillkitError(
            f"the reference statistics of {chosen.name} have no recorded hash yet. They hash to\n  {found}\n"
            f"Compare it with a hash you trust, then record it: distillkit protocols pin {chosen.name} --sha256 {found}"
        )
    if found != known:
        raise DistillkitError(
            f"{path} is not the reference that was recorded:\n  recorded sha256 {known} ({lock_file()})\n"
            f"  found sha256 {found}\nFigures against it would not be comparable; restore the file."
        )
    return reference


def pinned(name: str) -> str:
    """The recorded hash of a protocol's reference numbers; empty if there is none.

    Raises:
        DistillkitError: when the lock file is damaged.
    """
    return str(read_recorded(lock_file(), str).get(name, ""))


def pin(name: str, sha256: str) -> None:
    """Record the hash of a protocol's reference numbers."""
    write_json(lock_file(), read_recorded(lock_file(), str) | {name: sha256})


def fetch_files(chosen: ProtocolPreset, reporter: Reporter, should_stop: Callable[[], int]) -> list[Path]:
    """Download what a protocol needs and is not here: the Inception network (verified) and reference statistics.

    Raises:
        DistillkitError: when something cannot be had or has another hash.
        Interrupted: after a signal.
    """
    wanted = [(chosen.reference.url, evaluation_folder() / chosen.reference.file, "")] if chosen.reference.url else []
    if chosen.extractor.startswith("inception"):
        wanted.insert(0, (INCEPTION_URL, evaluation_folder() / INCEPTION_FILE, INCEPTION_SHA256))
    for url, path, expected in wanted:
        if path.is_file():
            continue
        if offline():
            raise DistillkitError(f"HF_HUB_OFFLINE forbids to download {url}; place it at {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        download(url, path, reporter=reporter, expected_sha256=expected, should_stop=should_stop)
    return [path for _, path, _ in wanted]
