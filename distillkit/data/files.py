"""Where real images come from: EDM's zip files and folders, folders of classes, Hugging Face datasets."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import mmap
import os
import struct
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from distillkit.errors import DistillkitError, UsageError
from distillkit.files import canonical_json

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
LABELS = "dataset.json"
MOST_BYTES = 2**28
"""Image files of more bytes are refused unread."""

Labels = npt.NDArray[np.int64]


class ImageFiles(ABC):
    """Numbered image files with labels; reading is safe from several threads.

    Attributes:
        names: one for each image, in a fixed order.
        labels: (N,) int64 class indices, or None.
        class_names: of the classes in order, where their source names them.
        fingerprint: hash of names, labels and contents as far as they are known without reading.
    """

    names: Sequence[str]
    labels: Labels | None
    class_names: tuple[str, ...] = ()
    fingerprint: str

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The bytes of one image file.

        Raises:
            DistillkitError: naming the file, when it cannot be read.
        """


def open_images(path: str) -> ImageFiles:
    """Images from `hf:ORG/NAME[:SPLIT]`, a zip file, a folder, a parquet file or a saved Hugging Face dataset.

    A zip file or folder is labelled by its `dataset.json` as EDM's and StyleGAN's tools write it; a folder without one
    by its subfolders, in the order of their names; both may have no labels.

    Raises:
        UsageError: when there is nothing of the kind, or it is empty.
        DistillkitError: when it is damaged.
    """
    if path.startswith("hf:"):
        return HubImages.load(path.removeprefix("hf:"))
    place = Path(path).expanduser()
    if place.suffix == ".parquet" and place.is_file():
        return HubImages.from_parquet(place)
    if place.is_file():
        images: ImageFiles = ZipImages(place)
    elif (place / "dataset_info.json").is_file():
        return HubImages.from_disk(place)
    elif place.is_dir():
        images = FolderImages(place)
    else:
        raise UsageError(f"no images at {path}: it is neither a file, a folder nor hf:ORG/NAME")
    if not len(images):
        raise UsageError(f"no images in {path}: it holds no {', '.join(sorted(SUFFIXES))} files")
    return images


class ZipImages(ImageFiles):
    """Images in a zip file, read from a memory map; uncompressed members cost no copy but their own.

    Raises:
        UsageError: when it is not a zip file.
        DistillkitError: for members with hostile names or sizes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
            members = self._archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise UsageError(f"{path} is not a readable zip file: {error}") from error
        for member in members:
            place = PurePosixPath(member.filename)
            if place.is_absolute() or ".." in place.parts or "\\" in member.filename:
                raise DistillkitError(f"{path}: refused: its member {member.filename[:80]!r} points outside of it")
            if member.file_size > MOST_BYTES:
                raise DistillkitError(f"{path}: refused: its member {member.filename[:80]!r} claims to be very large")
        self._members = sorted(
            (m for m in members if PurePosixPath(m.filename).suffix.lower() in SUFFIXES), key=lambda m: m.filename
        )
        self.names = [member.filename for member in self._members]
        described = {m.filename: m for m in members}.get(LABELS)
        text = self._archive.read(described) if described else None
        self.labels = read_labels(text, self.names, f"{path}:{LABELS}")
        sizes = [[m.filename, m.file_size, m.CRC] for m in self._members]
        self.fingerprint = fingerprint(sizes, self.labels)
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._lock = threading.Lock()

    def read(self, index: int) -> bytes:
        member = self._members[index]
        try:
            if member.compress_type != zipfile.ZIP_STORED:
                with self._lock:
                    return self._archive.read(member)
            name_length, extra_length = struct.unpack_from("<HH", self._map, member.header_offset + 26)
            start = member.header_offset + 30 + name_length + extra_length
            data = self._map[start : start + member.file_size]
        except (zipfile.BadZipFile, struct.error, OSError, zlib.error, EOFError, RuntimeError) as error:
            raise DistillkitError(f"{self.path}: cannot read {member.filename}: {error}") from error
        if len(data) != member.file_size or zlib.crc32(data) != member.CRC:
            raise DistillkitError(f"{self.path}: {member.filename} is damaged (wrong checksum)")
        return data


class FolderImages(ImageFiles):
    """Image files under a folder. Paths are kept as text: there may be millions."""

    def __init__(self, path: Path) -> None:
        self.root = os.path.join(path, "")  # noqa: PTH118
        found: list[tuple[str, int]] = []
        for folder, _, files in os.walk(self.root):
            for file in files:
                if os.path.splitext(file)[1].lower() in SUFFIXES:  # noqa: PTH122
                    full = os.path.join(folder, file)  # noqa: PTH118
                    found.append((full[len(self.root) :].replace(os.sep, "/"), os.stat(full).st_size))  # noqa: PTH116
        found.sort()
        self.names = [name for name, _ in found]
        described = path / LABELS
        if described.is_file():
            self.labels = read_labels(described.read_bytes(), self.names, str(described))
        else:
            self.labels, self.class_names = _labels_of_classes(self.names)
        self._sizes = [size for _, size in found]
        self.fingerprint = fingerprint([list(entry) for entry in found], self.labels)

    def read(self, index: int) -> bytes:
        name = self.root + self.names[index]
        if self._sizes[index] > MOST_BYTES:
            raise DistillkitError(f"{name} is very large for an image; refused")
        try:
            with open(name, "rb") as file:  # noqa: PTH123
                return file.read(MOST_BYTES)
        except OSError as error:
            raise DistillkitError(f"cannot read {name}: {error.strerror}") from error


class HubImages(ImageFiles):
    """A Hugging Face dataset with an image column and perhaps a label column.

    Raises:
        UsageError: when it has no image column, or the library `datasets` is not installed.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        import datasets

        images = [k for k, v in dataset.features.items() if isinstance(v, datasets.Image)]
        labels = [k for k, v in dataset.features.items() if isinstance(v, datasets.ClassLabel)]
        if not images:
            raise UsageError(f"{name} has no column of images (columns: {', '.join(dataset.features)})")
        if not len(dataset):
            raise UsageError(f"no images in {name}")
        self.column = images[0]
        self._data = dataset.cast_column(self.column, datasets.Image(decode=False))
        self.names = range_names(name, len(dataset))
        self.labels = None
        if labels:
            chosen = "label" if "label" in labels else labels[0]
            self.labels = check_labels(np.asarray(dataset[chosen][:], dtype=np.int64), self.names, name)
            self.class_names = tuple(dataset.features[chosen].names or ())
        self.fingerprint = fingerprint([str(getattr(dataset, "_fingerprint", name)), len(dataset)], self.labels)

    def read(self, index: int) -> bytes:
        entry = self._data[index][self.column]
        if entry.get("bytes") is not None:
            return bytes(entry["bytes"])
        return Path(entry["path"]).read_bytes()

    @classmethod
    def load(cls, name: str) -> HubImages:
        """`ORG/NAME[:SPLIT]` from the hub or its cache, the split `train` by default."""
        repository, _, split = name.partition(":")
        return cls(_datasets("load_dataset", repository, split=split or "train"), f"hf:{name}")

    @classmethod
    def from_parquet(cls, path: Path) -> HubImages:
        return cls(_datasets("load_dataset", "parquet", data_files=str(path), split="train"), str(path))

    @classmethod
    def from_disk(cls, path: Path) -> HubImages:
        return cls(_datasets("load_from_disk", str(path)), str(path))


def require_datasets() -> None:
    """Refuse where Hugging Face's library is not installed.

    Raises:
        UsageError: with what to install.
    """
    if importlib.util.find_spec("datasets") is None:
        raise UsageError("Hugging Face datasets need another library: pip install 'distillkit[datasets]'")


def _datasets(function: str, *arguments: Any, **options: Any) -> Any:
    require_datasets()
    import datasets

    try:
        return getattr(datasets, function)(*arguments, **options)
    except Exception as error:  # the library raises many kinds
        reason = str(error).splitlines()[0] if str(error) else ""
        raise DistillkitError(f"cannot open the dataset {arguments}: {type(error).__name__}: {reason}") from error


def read_labels(text: bytes | None, names: Sequence[str], where: str) -> Labels | None:
    """Labels from the text of a dataset.json, {"labels": [[name, class], ...]} or {"labels": null}.

    Raises:
        DistillkitError: when it is damaged, a class is not a small non-negative integer, or an image has none.
    """
    if text is None:
        return None
    try:
        listed = json.loads(text)["labels"]
        by_name = None if listed is None else {str(name): label for name, label in listed}
    except (ValueError, KeyError, TypeError) as error:
        raise DistillkitError(f"{where} is not a list of labels: {str(error).splitlines()[0]}") from error
    if by_name is None:
        return None
    if missing := [name for name in names if name not in by_name]:
        raise DistillkitError(f"{where} has no label for {missing[0]} ({len(missing):,} images are without)")
    return check_labels([by_name[name] for name in names], names, where)


def check_labels(values: Any, names: Sequence[str], where: str) -> Labels:
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, (int, np.integer)) or not 0 <= value < 10**6:
            raise DistillkitError(f"{where}: the label of {name} is {str(value)[:40]!r}, not a class number from 0")
    return np.asarray(values, dtype=np.int64)


def _labels_of_classes(names: Sequence[str]) -> tuple[Labels | None, tuple[str, ...]]:
    """Subfolders as classes, in the order of their names; none where images lie beside the subfolders."""
    tops = [name.partition("/")[0] if "/" in name else "" for name in names]
    if not names or "" in tops:
        return None, ()
    classes = tuple(sorted(set(tops)))
    number = {top: index for index, top in enumerate(classes)}
    return np.asarray([number[top] for top in tops], dtype=np.int64), classes


def range_names(name: str, count: int) -> list[str]:
    return [f"{name}[{index}]" for index in range(count)]


def fingerprint(contents: Any, labels: Labels | None) -> str:
    """sha256 over what identifies the images, and their labels."""
    digest = hashlib.sha256(canonical_json(contents).encode())
    digest.update(b"no labels" if labels is None else labels.tobytes())
    return digest.hexdigest()
