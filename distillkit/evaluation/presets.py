"""Protocols by name, as plugins offer them: found, chosen for a teacher, and loaded as a measure."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distillkit.contracts.teacher import Teacher
from distillkit.contracts.text import prompts_sha256
from distillkit.errors import DistillkitError, UsageError
from distillkit.evaluation.clip import Clip
from distillkit.evaluation.extractor import FeatureExtractor, torchscript_extractor
from distillkit.evaluation.measure import ClipMeasure, FrechetMeasure, Measure
from distillkit.evaluation.protocol import ImagePreparation, Protocol, SampleSpec
from distillkit.evaluation.reference import NPZ, SUFFIX, Making, Reference, load_reference
from distillkit.evaluation.reference_files import prompts_of, reference_of
from distillkit.files import slug
from distillkit.reading import first_problem
from distillkit.registry import Installed, Registry, blaming, registry

log = logging.getLogger(__name__)

COMMAND = "distillkit protocols"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReferencePreset(_Part):
    """Where a protocol's reference statistics come from."""

    id: str
    count: int = Field(ge=2)
    file: str = Field("", description="name in the cache's evaluation folder")
    url: str = ""
    load: Callable[[], Reference] | None = Field(
        None, exclude=True, description="gives them instead, where they come with the package that offers the protocol"
    )


class ProtocolPreset(_Part):
    """A protocol by name, before its hashes are known."""

    name: str
    title: str
    extractor: str
    count: int = Field(ge=2)
    labels: Literal["index mod classes", "drawn after the noise", "none"] = "index mod classes"
    reference: ReferencePreset
    teachers: tuple[str, ...] = Field((), description="shell patterns of the teachers that it is the default for")
    shape: tuple[int, ...] = Field((), description="default also for teachers of decoded samples of this shape ...")
    classes: int | None = Field(None, description="... and of so many classes, where this is given")
    prompts: str = Field("", description="text file of prompts, one a line: a path, or a name in the evaluation folder")
    images: ImagePreparation | None = None

    def is_for(self, shape: tuple[int, ...], classes: int) -> bool:
        """Whether it is the default for whatever makes samples of this shape."""
        return bool(self.shape) and self.shape == shape and self.classes in (None, classes)


class OwnMeasure(_Part):
    """A protocol that its plugin makes itself: the default for teachers of the protocol's name."""

    name: str
    title: str
    make: Callable[[], Measure] = Field(exclude=True)

    @property
    def teachers(self) -> tuple[str, ...]:
        return (self.name,)

    def is_for(self, shape: tuple[int, ...], classes: int) -> bool:
        return False


def presets() -> Mapping[str, ProtocolPreset | OwnMeasure]:
    """All protocols that plugins offer, distillkit's own among them, by name.

    Raises:
        DistillkitError: when one is malformed; names the plugin.
    """
    return _presets(registry())


def _presets(known: Registry) -> Mapping[str, ProtocolPreset | OwnMeasure]:
    return {name: _preset(name, offer) for name, offer in sorted(known.named("protocols").items())}


def _preset(name: str, offer: Installed) -> ProtocolPreset | OwnMeasure:
    if not isinstance(offer.value, Mapping):
        title = (getattr(offer.value, "__doc__", "") or "").strip().partition("\n")[0]
        return OwnMeasure(name=name, title=title, make=offer.value)
    try:
        return ProtocolPreset.model_validate({**offer.value, "name": name})
    except ValidationError as error:
        raise DistillkitError(f"the protocol {name} of {offer.origin}: {first_problem(error)}") from error


@cache
def shipped_presets() -> Mapping[str, Mapping[str, Any]]:
    """The protocols that are files of this package, by name."""
    folder = files("distillkit.evaluation") / "presets"
    found = (json.loads(f.read_text(encoding="utf-8")) for f in folder.iterdir() if f.name.endswith(".json"))
    return {preset["name"]: preset for preset in found}


def preset(name: str) -> ProtocolPreset | OwnMeasure:
    """The protocol of that name.

    Raises:
        UsageError: for an unknown name, with the nearest known one; or a file of reference statistics.
    """
    if is_reference(name):
        raise UsageError(
            f"{name} is a file of reference statistics and needs nothing else; here a protocol's name is needed (see "
            "`distillkit protocols`)"
        )
    if Path(name).suffix == NPZ:
        raise UsageError(
            f"--protocol {name}: {NPZ} files do not say which extractor made them; give --reference {name} and "
            "--extractor NAME, or make a protocol of it by `distillkit reference convert`"
        )
    offer = registry().find("protocols", name, COMMAND)
    return _preset(name, offer)


def is_reference(name: str) -> bool:
    """Whether a protocol's name is a file of reference statistics, which stands for the protocol that made it."""
    return Path(name).suffix == SUFFIX


def default_protocol(teacher: Teacher) -> str | None:
    """The protocol that a teacher is measured with by default, or None."""
    shape = teacher.codec.decoded_shape(teacher.spec.shape)
    return protocol_for(teacher.spec.name, shape, teacher.conditioner.count)


def protocol_for(name: str, shape: tuple[int, ...], classes: int) -> str | None:
    """The protocol for a teacher of this name, or else for decoded samples of this shape and number of classes."""
    known = presets().values()
    by_name = [p.name for p in known if any(fnmatch(name, pattern) for pattern in p.teachers)]
    by_shape = [p.name for p in known if p.is_for(tuple(shape), classes)]
    return next(iter(by_name + by_shape), None)


def is_torchscript(name: str) -> bool:
    """Whether an extractor's name is the file of a TorchScript program."""
    return Path(name).suffix in (".pt", ".pth", ".ts")


def load_extractor(name: str, shape: tuple[int, ...] = (3, 32, 32)) -> FeatureExtractor:
    """A feature extractor by name, or from a TorchScript file for images of `shape`.

    Raises:
        UsageError: for an unknown name, or a file that is not TorchScript.
        DistillkitError: when its weights are missing, wrong, or its plugin fails.
    """
    if is_torchscript(name):
        return torchscript_extractor(Path(name).expanduser(), shape)
    offer = registry().find("extractors", name, COMMAND)
    with blaming(f"extractor {name}", offer.origin, "fails"):
        extractor = offer.value()
    if not isinstance(extractor, FeatureExtractor):
        raise DistillkitError(f"extractor {name} ({offer.origin}) is not a FeatureExtractor")
    return extractor


def load_measure(
    name: str | None, *, reference: Reference | Path | str | None = None,
    extractor: FeatureExtractor | str | None = None, count: int | None = None, first_seed: int = 0,
    shape: tuple[int, ...] = (3, 32, 32), clip: Clip | None = None,
) -> Measure:  # fmt: skip
    """A protocol with its extractor and reference, verified.

    Args:
        name: of the protocol, or a file of `distillkit reference make`, which is one; None where `reference` is given.
        reference: other statistics than the protocol's: an object, or a file.
        extractor: another network than the protocol's: an object, a name, or a TorchScript file. A reference that says
            how it was made needs none, and takes no other.
        count, first_seed: other samples than the protocol's. Each of these makes it another protocol.
        shape: of the images, for a TorchScript file.
        clip: by which images are also compared with their prompts; the CLIP score alone where nothing else is given.

    Raises:
        UsageError: for an unknown name, or a protocol that cannot be changed so.
        DistillkitError: when a file is missing, wrong, or has no recorded hash yet; says what to do.
    """
    if clip and name is None and reference is None and extractor is None:
        return ClipMeasure(clip, count=count or 10_000, first_seed=first_seed)
    if name and is_reference(name):
        if reference is not None or extractor is not None:
            raise UsageError(
                f"the protocol {name} has its reference and extractor: leave --reference and --extractor out"
            )
        name, reference = None, name
    chosen = preset(name) if name else None
    if isinstance(chosen, OwnMeasure):
        return _made(chosen, reference, extractor or clip, count, first_seed)
    reference = load_reference(Path(reference).expanduser()) if isinstance(reference, (str, Path)) else reference
    extractor = load_extractor(extractor, shape) if isinstance(extractor, str) else extractor
    own = reference is not None or extractor is not None
    if reference is not None and reference.making is not None:
        extractor = extractor or _recorded_extractor(reference, reference.making, shape)
        _same_extractor(extractor, reference)
    if chosen is not None:
        reference, extractor = reference or reference_of(chosen), extractor or load_extractor(chosen.extractor, shape)
    if reference is None or extractor is None:
        raise UsageError(
            "no protocol is known for this; name one (--protocol, see `distillkit protocols`), or give "
            "--reference, a file of `distillkit reference make`, or --reference and --extractor"
        )
    if extractor.spec.dim != len(reference.mean):
        raise DistillkitError(
            f"the reference {reference.id} has {len(reference.mean)} features and {extractor.spec.id} "
            f"{extractor.spec.dim}: it was made with another extractor"
        )
    making = reference.making
    images = chosen.images if chosen else making.images if making else None
    prompts = prompts_of(chosen) if chosen and chosen.prompts else reference.prompts
    samples = SampleSpec(
        count=count or (chosen.count if chosen else 10_000), first_seed=first_seed,
        labels=chosen.labels if chosen else "index mod classes",
        prepare=str(images) if images else "none",
        prompts_sha256=prompts_sha256(prompts) if prompts else "",
    )  # fmt: skip
    title = chosen.name if chosen and not own else slug(f"{reference.id}-{extractor.spec.id}")
    protocol = Protocol(
        name=title, extractor=extractor.spec, samples=samples, reference=reference.spec,
        clip=clip.spec if clip else None,
    )  # fmt: skip
    return FrechetMeasure(protocol, extractor, reference, preparation=images, prompts=prompts, clip=clip)


def _recorded_extractor(reference: Reference, making: Making, shape: tuple[int, ...]) -> FeatureExtractor:
    """The extractor that a reference names.

    A TorchScript file is a program, and its path comes out of a file that may have been downloaded: it is said which
    one is loaded, and it is not before its sha256 was found to be the recorded one.

    Raises:
        UsageError, DistillkitError: as `load_extractor`, and for another file than the recorded one.
    """
    if not is_torchscript(making.extractor):
        return load_extractor(making.extractor, shape)
    path = Path(making.extractor)
    if not path.is_absolute():
        raise DistillkitError(
            f"the reference {reference.id} names the TorchScript file {making.extractor} without its folder, so it is "
            "not loaded; name the file by --reference and --extractor"
        )
    log.warning("the reference %s names the TorchScript program %s, which is loaded", reference.id, path)
    return torchscript_extractor(path, shape, making.spec.weights_sha256)


def _same_extractor(extractor: FeatureExtractor, reference: Reference) -> None:
    """Refuse another extractor than the reference was made with.

    Raises:
        DistillkitError: naming what differs.
    """
    assert reference.making is not None
    made = reference.making.spec.model_dump()
    if differ := [f"{k} {v}, not {made[k]}" for k, v in extractor.spec.model_dump().items() if made[k] != v]:
        raise DistillkitError(
            f"the reference {reference.id} was made with {reference.making.extractor} ({reference.making.spec.id}) and "
            f"{extractor.spec.id} is another extractor: {'; '.join(differ)}. Make the reference anew with it: "
            "`distillkit reference make`"
        )


def _made(chosen: OwnMeasure, reference: object, extractor: object, count: int | None, first_seed: int) -> Measure:
    """The measure of a plugin that makes its own, on other samples where it has them."""
    if reference is not None or extractor is not None:
        raise UsageError(
            f"the protocol {chosen.name} has its own way to measure; leave --reference, --extractor and --clip out"
        )
    offer = registry().find("protocols", chosen.name, COMMAND)
    with blaming(f"protocol {chosen.name}", offer.origin, "fails"):
        measure = chosen.make()
    if not isinstance(measure, Measure):
        raise DistillkitError(f"the protocol {chosen.name} ({offer.origin}) does not make a distillkit.Measure")
    return measure.with_samples(count, first_seed)
