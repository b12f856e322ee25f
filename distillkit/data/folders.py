"""Images in a folder, with the folders under it and behind its links."""

from __future__ import annotations

import os
import stat
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from distillkit.data.decoding import Damaged, is_image_name
from distillkit.data.files import HEAD, MOST_BYTES, ImageFiles, counted, fingerprint, kind_of, read_file
from distillkit.data.labels import LABELS, label_files, shown
from distillkit.errors import DistillkitError, UsageError

MOST_FOLDERS = 10**6
MOST_LEVELS = 64
"""Links can make few folders endlessly many, even where they make no circle."""

NO_DATA = frozenset({"__MACOSX", "@eaDir", "lost+found", "Thumbs.db", "desktop.ini"})
"""What systems put into folders, beside names that begin with a dot."""

MOST_READ = 64

MOST_LABEL_BYTES = (2**21, 2**12)
"""A dataset.json may have so many bytes, and so many more for each image."""


class FolderImages(ImageFiles):
    """Image files under a folder. Paths are kept as text: there may be millions.

    Args:
        caption: column of the captions in its metadata.jsonl or metadata.csv.

    Raises:
        UsageError: for a pipe or device among the images, or parts of a data set in the place of classes.
        DistillkitError: for a folder that cannot be read, or damaged labels.
    """

    def __init__(self, path: Path, caption: str | None = None) -> None:
        self.root = os.path.join(path, "")  # noqa: PTH118
        found = _Walk(self.root)
        self._caption_column, self._texts = caption, found.texts
        self.names = [name for name, _ in found.images]
        self._sizes = [size for _, size in found.images]
        labelling = label_files(self.names, self._described, self.root)
        self.labels, self.class_names, self.notes = labelling.labels, labelling.class_names, labelling.notes
        if found.texts:
            self.notes = [*self.notes, f"{counted(found.texts, 'text')} beside them"]
        self.left_out = found.left_out()
        # Names and sizes of all, contents of some: other images of the same names are told apart.
        some = [self._checksum(k * len(self) // MOST_READ) for k in range(MOST_READ)] if len(self) else []
        self.fingerprint = fingerprint([[list(entry) for entry in found.images], some], self.labels)

    @cached_property
    def captions(self) -> Sequence[str] | None:  # type: ignore[override]
        """Of the first metadata table there is, or of the .txt files beside the images."""
        from distillkit.data.captions import LARGEST, METADATA, texts_beside, texts_listed

        def table(name: str) -> BinaryIO | None:
            return Path(self.root + name).open("rb") if kind_of(self.root + name) == "file" else None

        if (listed := texts_listed(self.names, table, self.root, self._caption_column)) is not None:
            return listed
        if self._caption_column is not None:
            raise UsageError(f"--data-caption-column is for tables, and {self.root} has none of {', '.join(METADATA)}")
        if not self._texts:
            return None

        def read(name: str) -> bytes | None:
            try:
                return read_file(self.root + name, LARGEST + 1)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise DistillkitError(f"cannot read the caption {self.root + name}: {error.strerror}") from error

        texts = texts_beside(self.names, read, self.root)
        return texts if any(texts) else None

    def read(self, index: int, most: int = MOST_BYTES) -> bytes:
        if self._sizes[index] > MOST_BYTES:
            raise Damaged(f"the image {self.where(index)} has {self._sizes[index]:,} bytes, more than {MOST_BYTES:,}")
        try:
            return read_file(self.root + self.names[index], most)
        except OSError as error:
            raise Damaged(f"cannot read the image {self.where(index)}: {error.strerror}") from error

    def _checksum(self, index: int) -> int:
        try:
            return zlib.crc32(self.read(index, HEAD))
        except Damaged:
            return 0

    def where(self, index: int) -> str:
        return shown(self.root + self.names[index], 1000)

    def _described(self, name: str) -> bytes | None:
        path = self.root + name
        kind = kind_of(path)
        if not kind and not os.path.islink(path):  # noqa: PTH114
            return None
        if kind != "file":
            raise UsageError(f"{path} is a {kind or 'broken link'}, not a file of labels")
        base, an_image = MOST_LABEL_BYTES
        most = base + an_image * len(self.names)
        try:
            text = read_file(path, most + 1)
        except OSError as error:
            raise DistillkitError(f"cannot read the labels {path}: {error.strerror}") from error
        if len(text) > most:
            raise DistillkitError(
                f"{path} has more than {most:,} bytes, which is too much for the labels of {len(self.names):,} images"
            )
        return text


class _Walk:
    """All image files under a folder, sorted, and what was not taken."""

    def __init__(self, root: str) -> None:
        self.images: list[tuple[str, int]] = []
        self._hidden: list[str] = []
        self._broken: list[str] = []
        self._circles: list[str] = []
        self._others: Counter[str] = Counter()
        self._texts: list[str] = []
        self._folders: set[str] = set()
        seen = os.stat(root)  # noqa: PTH116
        waiting = [("", frozenset({(seen.st_dev, seen.st_ino)}))]
        folders = 0
        while waiting:
            folder, above = waiting.pop()
            folders += 1
            self._folders.add(folder)
            if folders > MOST_FOLDERS or len(above) > MOST_LEVELS:
                raise UsageError(
                    f"{root} holds more than {MOST_FOLDERS:,} folders or {MOST_LEVELS} levels of them, such as "
                    f"{shown(folder)}: do its links lead to each other?"
                )
            waiting += self._look_into(root, folder, above)
        self.images.sort()
        self.texts = self._beside_images()
        filled = {""}
        for name, _ in self.images:
            while (name := name[: name.rstrip("/").rfind("/") + 1]) not in filled:
                filled.add(name)
        self._empty = sorted(self._folders - filled)

    def _look_into(
        self, root: str, folder: str, above: frozenset[tuple[int, int]]
    ) -> list[tuple[str, frozenset[tuple[int, int]]]]:
        deeper = []
        try:
            entries = list(os.scandir(root + folder))
        except OSError as error:
            raise DistillkitError(f"cannot read the folder {shown(root + folder)}: {error.strerror}") from error
        for entry in entries:
            name = folder + entry.name
            if entry.name.startswith(".") or entry.name in NO_DATA:
                self._hidden.append(name)
            elif entry.is_dir():
                status = entry.stat()
                place = (status.st_dev, status.st_ino)
                if place in above:
                    self._circles.append(name)
                else:
                    deeper.append((f"{name}/", above | {place}))
            else:
                self._take(root, entry, name)
        return deeper

    def _take(self, root: str, entry: os.DirEntry[str], name: str) -> None:
        if name.rpartition("/")[2] == LABELS:
            return
        if entry.name.endswith(".txt"):
            self._texts.append(name)
            return
        if not is_image_name(entry.name):
            self._others[PurePosixPath(entry.name).suffix.lower() or "without a suffix"] += 1
            return
        try:
            status = entry.stat()
        except OSError:
            self._broken.append(name)
            return
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{shown(root + name)} is a {kind_of(root + name)}, not an image: remove it")
        self.images.append((name, status.st_size))

    def _beside_images(self) -> int:
        """How many .txt files lie beside images of their names; the others are left out."""
        if not self._texts:
            return 0
        images = {name.rpartition(".")[0] for name, _ in self.images}
        beside = sum(name.removesuffix(".txt") in images for name in self._texts)
        if beside < len(self._texts):
            self._others[".txt"] += len(self._texts) - beside
        return beside

    def left_out(self) -> list[str]:
        """What was not taken, for people."""
        found = [
            f"{counted(len(names), one, many)} (such as {shown(min(names))})"
            for one, many, names in (
                ("hidden or system name", "hidden or system names", self._hidden),
                ("folder without images", "folders without images", self._empty),
                ("broken link", "broken links", self._broken),
                ("link to a folder above itself", "links to folders above themselves", self._circles),
            )
            if names
        ]
        return found + others(self._others)


def others(suffixes: Counter[str]) -> list[str]:
    """Files that are no images, by their suffixes."""
    if not suffixes:
        return []
    kinds = ", ".join(f"{count:,} {shown(suffix, 20)}" for suffix, count in suffixes.most_common(4))
    more = ", ..." if len(suffixes) > 4 else ""
    return [f"{counted(suffixes.total(), 'other file')} ({kinds}{more})"]
