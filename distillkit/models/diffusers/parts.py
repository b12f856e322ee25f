"""The frozen parts of a pipeline (tokenizers, text encoders, autoencoder): where they lie, and what they were."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from distillkit.errors import DistillkitError, UsageError
from distillkit.files import sha256
from distillkit.models.diffusers.weights import chosen, read_weights
from distillkit.reading import Missing, read_mapping, validated
from distillkit.registry import registry

log = logging.getLogger(__name__)

RelativeFile = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}/[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

HERE = "."
"""The source of parts that lie in the folder of the student that describes them."""


class PipelineParts(BaseModel):
    """Components of a diffusers pipeline that are used as they are.

    Args:
        source: a folder, `hf:ORG/REPO@REVISION`, or the name of a teacher that comes with one; a folder or a repository
            may also be the autoencoder alone.
        sha256: of the files that were used, by component and name; other files are refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(min_length=1, max_length=4096)
    sha256: dict[RelativeFile, Sha256] = Field(default_factory=dict, max_length=10_000)

    @property
    def folder(self) -> Path:
        """The pipeline's folder; downloaded where it is not in the hub's cache.

        Raises:
            UsageError, DistillkitError: when it is not there.
        """
        return located(self.source, self.sha256)

    def component(self, name: str) -> Path:
        """The folder of a component such as "vae", its files compared with those that were recorded.

        Raises:
            UsageError: when the pipeline has none.
            DistillkitError: when a file is another.
        """
        return self._component(self.folder, name)

    def _component(self, folder: Path, name: str) -> Path:
        place = folder / name
        if not place.is_dir() and _is_alone(folder, name):
            place = folder
        if not place.is_dir():
            raise UsageError(f"{folder} has no {name}, which this model needs")
        for file, recorded in self.sha256.items():
            path = place / file.removeprefix(f"{name}/")
            if file.startswith(f"{name}/") and (found := _hash_of(path)) != recorded:
                what = "is missing" if found is None else f"is another file (sha256 {found[:16]}...)"
                raise DistillkitError(
                    f"{path} {what} than the one that this model was made with (sha256 {recorded[:16]}...)"
                )
        return place

    def hashed(self, *components: str, dtype: torch.dtype = torch.float32) -> Self:
        """The same with the hashes of all files of these components that matter: configurations, vocabularies, weights.

        Args:
            dtype: in which the weights are used, which says which variant of them that is.

        Raises:
            UsageError: when a component is missing.
        """
        found, folder = dict(self.sha256), located(self.source, self.sha256, dtype)
        for name in components:
            place = self._component(folder, name)
            files = [path.name for path in place.iterdir() if path.is_file()]
            weights = chosen(files, dtype)
            kept = set(weights.among(files)) if weights else set()
            kept |= {file for file in files if file.endswith((".json", ".txt", ".model"))}
            found |= {f"{name}/{file}": _hash_of(place / file) or "" for file in sorted(kept)}
        return self.model_copy(update={"sha256": found})

    def configuration(self, component: str, name: str = "config.json") -> dict[str, Any]:
        """A component's configuration.

        Raises:
            UsageError: when it is missing.
            DistillkitError: when it is damaged.
        """
        path = self.component(component) / name
        try:
            return read_mapping(path)
        except Missing as error:
            raise UsageError(f"{path} is missing") from error

    def weights(self, component: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """All tensors of a component; floating point ones in `dtype`. Files that were recorded are read, whatever lies
        beside them.

        Raises:
            UsageError: when there are none.
            DistillkitError: when they are damaged, refused or incomplete.
        """
        recorded = [file.partition("/")[2] for file in self.sha256 if file.startswith(f"{component}/")]
        tensors, _, note = read_weights(self.component(component), dtype, recorded)
        if note:
            log.info("reading %s", note)
        return tensors


def located(source: str, files: Collection[str] = (), dtype: torch.dtype = torch.float32) -> Path:
    """The folder of a pipeline by name.

    Args:
        files: what is downloaded of it, where it is to be; by default all that a teacher in `dtype` needs.

    Raises:
        UsageError: when there is none of that name.
        DistillkitError: when it cannot be had.
    """
    from distillkit.models.diffusers import hub

    if source.startswith(hub.PREFIX):
        # In a repository that is the component alone, the same files lie in no folder.
        return hub.snapshot(source, files=[*files, *(file.rpartition("/")[2] for file in files)], dtype=dtype)
    offer = registry().named("teachers").get(source)
    if offer is not None and (folder := getattr(getattr(offer.value, "card", None), "folder", None)):
        return Path(folder)
    path = Path(source).expanduser()
    if not path.is_dir():
        raise UsageError(
            f"the pipeline {source}, whose text encoder and autoencoder this model uses, is not there; put it back, or "
            "make a student that carries them: distillkit export RUN FOLDER --to diffusers --self-contained"
        )
    return path


def parts_in(description: Mapping[str, Any]) -> Iterator[PipelineParts]:
    """The parts that a conditioner's or a codec's description names, however deep.

    Raises:
        DistillkitError: when they are malformed.
    """
    for name, value in description.items():
        if name == "parts" and isinstance(value, Mapping):
            yield _read(value)
        elif isinstance(value, Mapping):
            yield from parts_in(value)


def with_parts(description: Mapping[str, Any], change: Callable[[PipelineParts], PipelineParts]) -> dict[str, Any]:
    """The same description with other parts.

    Raises:
        DistillkitError: when they are malformed.
    """
    changed: dict[str, Any] = {}
    for name, value in description.items():
        if name == "parts" and isinstance(value, Mapping):
            changed[name] = change(_read(value)).model_dump(mode="json")
        else:
            changed[name] = with_parts(value, change) if isinstance(value, Mapping) else value
    return changed


def beside(folder: Path) -> Callable[[PipelineParts], PipelineParts]:
    """Names the parts of a description that lie in the folder where it was read by that folder."""
    return lambda parts: parts.model_copy(update={"source": str(folder.absolute())}) if parts.source == HERE else parts


ALONE = {"vae": "AutoencoderKL"}
"""Components that are published by themselves, and their class."""


def _is_alone(folder: Path, name: str) -> bool:
    """Whether a folder is no pipeline but that component of one."""
    path = folder / "config.json"
    return name in ALONE and path.is_file() and read_mapping(path).get("_class_name") == ALONE[name]


def _read(value: Mapping[str, Any]) -> PipelineParts:
    return validated(PipelineParts, value, "the parts of a pipeline in a description")


def _hash_of(path: Path) -> str | None:
    if not path.is_file():
        return None
    state = path.stat()
    return _hash_at(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hash_at(path: Path, size: int, mtime_ns: int) -> str:
    return sha256(path)
