"""What the files of a stream hold: found out once, when a file is first met, and kept in the cache."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distillkit.data.addresses import version_of
from distillkit.data.remote import RemoteFile
from distillkit.files import WriteError, cache_folder, canonical_json, note_use, slug, write_tensors
from distillkit.locks import held
from distillkit.reading import Unreadable, parse_json
from distillkit.tensors import read_with_metadata

Integers = npt.NDArray[np.int64]
FORMAT = 1
NO_LABEL = -1


@dataclass(frozen=True)
class Wanted:
    """The columns that were asked for; also the names of arrays in the members of tar files."""

    image: str | None = None
    label: str | None = None
    caption: str | None = None
    latent: str | None = None


@dataclass
class FileIndex:
    """The samples of one file.

    Args:
        places: (n, 2) where each lies: first and last byte in a tar file, row group and row in a parquet file.
        has_image, has_arrays: (n,) of each.
        labels: (n,) class numbers, `NO_LABEL` where there is none.
        texts, ends: captions of all in UTF-8, (T,) bytes, and (n,) where each ends.
        group_bytes: (g,) of the row groups of a parquet file.
        names: of what the samples hold: endings of members, or columns.
        facts: what the file records of itself, such as whether latents are scaled.
        head: checksum of its beginning.
    """

    places: Integers
    has_image: npt.NDArray[np.bool_]
    has_arrays: npt.NDArray[np.bool_]
    labels: Integers
    texts: npt.NDArray[np.uint8]
    ends: Integers
    names: Counter[str]
    head: int
    group_bytes: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    facts: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def has_texts(self) -> bool:
        return len(self.texts) > 0

    def captions(self) -> Iterator[str]:
        """The captions in order; empty texts where there are none."""
        start = 0
        for end in self.ends.tolist():
            yield self.texts[start:end].tobytes().decode(errors="replace")
            start = end

    def digest(self) -> str:
        """Hash of everything that is known of the contents."""
        whole = hashlib.sha256(f"{self.head} {sorted(self.names.items())}".encode())
        for part in (self.places, self.labels, self.ends, self.texts):
            whole.update(np.ascontiguousarray(part).data)
        return whole.hexdigest()


class IndexBuilder:
    """Collects the samples of a file one after the other, in little memory."""

    def __init__(self) -> None:
        self._places, self._labels, self._ends = array("q"), array("q"), array("q")
        self._flags, self._texts = bytearray(), bytearray()
        self.names: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._flags)

    def add(self, place: tuple[int, int], text: str = "", label: int = NO_LABEL, *, image: bool, arrays: bool) -> None:
        self._places.extend(place)
        self._labels.append(label)
        self._texts += text.encode(errors="replace")
        self._ends.append(len(self._texts))
        self._flags.append(int(image) + 2 * int(arrays))

    def built(self, head: int, group_bytes: Sequence[int] = (), facts: dict[str, str] | None = None) -> FileIndex:
        flags = np.frombuffer(bytes(self._flags), np.uint8)
        return FileIndex(
            np.frombuffer(self._places, np.int64).reshape(-1, 2), (flags & 1) > 0, (flags & 2) > 0,
            np.frombuffer(self._labels, np.int64), np.frombuffer(self._texts, np.uint8),
            np.frombuffer(self._ends, np.int64), self.names, head, np.array(group_bytes, np.int64), facts or {},
        )  # fmt: skip


class Sample(Protocol):
    """One sample in memory."""

    def image(self, most: int) -> bytes:
        """At most so many bytes of its image file."""

    def arrays(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Its arrays by name, and what they record of themselves."""


class Format(Protocol):
    """How a kind of files is indexed and read."""

    name: str

    def index(self, file: RemoteFile, wanted: Wanted) -> FileIndex:
        """What a file holds, by one pass over it.

        Raises:
            UsageError, DistillkitError: when it is no such file, damaged, or holds what is not read.
        """

    def block(self, file: RemoteFile, places: Integers, wanted: Wanted) -> list[Sample]:
        """The samples at these places, which are neighbours, by one read.

        Raises:
            DistillkitError: when the file has changed or cannot be read.
        """


def indexed(
    format: Format, file: RemoteFile, wanted: Wanted, root: Path | None = None,
    refused: Callable[[str], None] = lambda reason: None,
) -> FileIndex:  # fmt: skip
    """The index of a file, from the cache where it is known.

    Args:
        root: of the indices; the cache folder by default.
        refused: hears why an index could not be kept.

    Raises:
        UsageError, DistillkitError: as `Format.index`.
    """
    path = index_path(format, file, wanted, root)
    if (found := _kept(path)) is not None:
        return found
    # Of several processes that come to it one reads the file.
    with held(path.with_suffix(".lock"), lambda: None):
        if (found := _kept(path)) is None:
            found = format.index(file, wanted)
            try:
                _keep(path, found)
            except WriteError as error:
                refused(str(error))
    return found


def index_path(format: Format, file: RemoteFile, wanted: Wanted, root: Path | None = None) -> Path:
    """Where the index of a file is kept: named by its address, its version and what is asked of it."""
    asked = [wanted.image, wanted.label, wanted.caption, wanted.latent]
    identity = [FORMAT, format.name, file.address, version_of(file), asked]
    name = hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:24]
    stem = slug(file.path.rpartition("/")[2])[:40]
    return (root or cache_folder() / "streams") / name[:2] / f"{stem}-{name}.safetensors"


def is_indexed(format: Format, file: RemoteFile, wanted: Wanted, root: Path | None = None) -> bool:
    """Whether the index of a file is in the cache."""
    return index_path(format, file, wanted, root).is_file()


def _keep(path: Path, index: FileIndex) -> None:
    tensors = {
        "places": index.places, "labels": index.labels, "ends": index.ends, "group_bytes": index.group_bytes,
        "flags": index.has_image.astype(np.uint8) + 2 * index.has_arrays.astype(np.uint8),
        "texts": index.texts,
    }  # fmt: skip
    metadata = {"names": json.dumps(index.names), "head": str(index.head), "facts": json.dumps(index.facts)}
    write_tensors(path, {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}, metadata)


def _kept(path: Path) -> FileIndex | None:
    """An index in the cache; None where there is none, or it is damaged."""
    if not path.is_file():
        return None
    try:
        tensors, metadata = read_with_metadata(path)
        found: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        flags = found["flags"]
        index = FileIndex(
            found["places"], (flags & 1) > 0, (flags & 2) > 0, found["labels"], found["texts"], found["ends"],
            Counter({str(k): int(v) for k, v in parse_json(metadata["names"].encode(), str(path)).items()}),
            int(metadata["head"]), found["group_bytes"],
            {str(k): str(v) for k, v in parse_json(metadata["facts"].encode(), str(path)).items()},
        )  # fmt: skip
        sizes = {len(index.places), len(flags), len(index.labels), len(index.ends)}
        if len(sizes) != 1 or index.places.shape[1:] != (2,):
            return None
        note_use(path)
        return index
    except (Unreadable, KeyError, ValueError, TypeError, AttributeError):
        return None
