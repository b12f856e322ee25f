"""Numbered image files: EDM's zip files and folders, folders of classes, .npz files, Hugging Face datasets."""

from __future__ import annotations

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillkit.data.decoding import Decoder, Header, formats, is_image_name
from distillkit.data.labels import Labels, shown
from distillkit.errors import UsageError
from distillkit.files import canonical_json

if TYPE_CHECKING:
    from distillkit.contracts.source import SourceJob

MOST_BYTES = 2**28
"""Image files of more bytes are refused unread."""

HEAD = 2**16
"""Bytes of a file's beginning that mostly tell what it says of itself."""

ARCHIVES = (".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")


class ImageFiles(ABC):
    """Numbered image files with labels; reading is safe from several threads.

    Attributes:
        names: one for each image, in a fixed order.
        labels: (N,) int64 class indices, or None.
        class_names: of the classes in order, where their source names them.
        captions: a text for each image, empty where it has none; None where there are none at all.
        fingerprint: hash of names, labels and contents as far as they are known without reading.
        left_out: what was not taken, and why, for people.
        notes: what else people should know.
        looked_at: of how many the headers are read before a run, where that is costly.
    """

    looked_at: int | None = None
    names: Sequence[str]
    labels: Labels | None
    class_names: tuple[str, ...] = ()
    captions: Sequence[str] | None = None
    fingerprint: str
    left_out: Sequence[str] = ()
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 without labels."""
        if self.labels is None:
            return 0
        return max(int(self.labels.max()) + 1, len(self.class_names))

    @abstractmethod
    def read(self, index: int, most: int = MOST_BYTES) -> bytes:
        """The bytes of one image file, at most so many of its beginning.

        Raises:
            Damaged: naming the file, when it cannot be read.
        """

    def ahead(self, numbers: Iterable[int]) -> None:  # noqa: B027 - most have nothing to fetch
        """Begin to fetch images that will be read soon, where that takes long."""

    def said(self) -> list[str]:
        """What people should know of the reading since it was last asked, one line each."""
        return []

    def where(self, index: int) -> str:
        """The file of one image with its whole path, for messages."""
        return shown(self.names[index])

    def header(self, index: int, decoder: Decoder) -> Header:
        """What an image file says of itself, by as little reading as that takes.

        Raises:
            Damaged: as `read`, and as `Decoder.header`.
        """
        name, head = self.where(index), self.read(index, HEAD)
        found = decoder.header(head, name, whole=len(head) < HEAD)
        found = found or decoder.header(self.read(index), name)
        assert found is not None
        return found


def open_images(
    path: str, *, image_column: str | None = None, label_column: str | None = None, caption_column: str | None = None,
    latent_column: str | None = None, job: SourceJob | None = None,
) -> ImageFiles:  # fmt: skip
    """Images from `hf:ORG/NAME[:SPLIT]`, a zip or tar file, a folder of images or of tar files, a parquet file, a table
    that lists images (csv, tsv, jsonl), a .npz file or a saved Hugging Face dataset. A pattern or address of tar or
    parquet files (`s3://bucket/{000..099}.tar`) is a stream, and so are tar and parquet files here that hold latents.

    A zip file or folder is labelled by its `dataset.json` as EDM's and StyleGAN's tools write it, or without one by its
    subfolders, in the order of their names; it may have no labels. Captions are .txt files beside the images, rows of
    its metadata.jsonl or metadata.csv, or a column.

    Args:
        image_column, label_column, caption_column: of a dataset that has several.
        latent_column: of latents, or what they are called in the members of tar files.
        job: whose progress shows the first reading of a stream.

    Raises:
        UsageError: when there is nothing of the kind, it is empty, or a choice has to be made.
        DistillkitError: when it is damaged.
    """
    if stream := _stream_of(path, latent_column):
        from distillkit.data.stream_files import StreamedFiles
        from distillkit.data.stream_index import Wanted

        return StreamedFiles(stream, Wanted(image_column, label_column, caption_column, latent_column), job)
    images = _opened(path, image_column, label_column, caption_column)
    if not len(images):
        there = f"; left out: {', '.join(images.left_out)}" if images.left_out else ""
        raise UsageError(f"no images in {path}: it holds none of {', '.join(formats())}{there}")
    return images


def _stream_of(path: str, latent: str | None) -> str:
    """The pattern of a stream, where a path names one: an address, a pattern, or files here that hold latents."""
    from distillkit.data.addresses import is_pattern
    from distillkit.data.tars import hold_arrays, tar_files_in

    place = Path(path).expanduser()
    if is_pattern(path) and not kind_of(place):
        return path
    kind, ending = kind_of(place), place.suffix.lower()
    if kind == "folder" and (tars := tar_files_in(place)) and (latent or hold_arrays(tars[0])):
        return f"{place}/*.tar"
    if kind == "file" and ((ending == ".tar" and (latent or hold_arrays(place))) or (ending == ".parquet" and latent)):
        return str(place)
    return ""


def _opened(path: str, image: str | None, label: str | None, caption: str | None) -> ImageFiles:
    from distillkit.data import hub
    from distillkit.data.tables import TABLES, TableImages

    columns = hub.Columns(image, label, caption)
    if hub.is_hub(path):
        return hub.from_hub(path.removeprefix("hf:"), columns)
    place = Path(path).expanduser()
    kind, ending = kind_of(place), place.suffix.lower()
    if kind not in ("file", "folder"):
        told = f"it is a {kind}" if kind else "there is nothing"
        raise UsageError(
            f"no images at {shown(path)}: {told}; name a folder, a zip, tar, parquet or .npz file, a table or "
            "hf:ORG/NAME"
        )
    if kind == "file" and ending == ".parquet":
        return hub.from_parquet([place], str(place), columns)
    if kind == "folder" and (found := hub.saved_in(place, columns)):
        return found
    is_table = kind == "file" and ending in TABLES
    asked = {"image": None if is_table else image, "label": label}
    asked["caption"] = caption if kind == "file" and not is_table else None
    if given := next((name for name, value in asked.items() if value), None):
        raise UsageError(
            f"--data-{given}-column is for parquet files, tables and Hugging Face datasets, and {path} is none"
        )
    if is_table:
        return TableImages(place, image, caption)
    return _in_folder(place, caption) if kind == "folder" else _in_file(place, path)


def _in_folder(place: Path, caption: str | None) -> ImageFiles:
    from distillkit.data.folders import FolderImages
    from distillkit.data.tars import TarImages, tar_files_in

    tars = tar_files_in(place)
    return TarImages(tars, str(place)) if tars else FolderImages(place, caption)


def _in_file(place: Path, path: str) -> ImageFiles:
    from distillkit.data.arrays import ArrayImages
    from distillkit.data.tars import TarImages
    from distillkit.data.zips import ZipImages

    ending = place.suffix.lower()
    if ending == ".tar":
        return TarImages([place], str(place))
    if ending == ".npz":
        return ArrayImages(place)
    if ending in ARCHIVES:
        raise UsageError(f"{path} is an archive that is not read: unpack it and name the folder, or make a zip file")
    if is_image_name(place.name):
        raise UsageError(f"{path} is one file: name the folder of the images")
    return ZipImages(place)


def kind_of(path: Path | str) -> str:
    """ "file", "folder", what else there is at a path, or nothing."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except (OSError, ValueError):
        return ""
    kinds = {
        stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe (FIFO)", stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "device", stat.S_IFBLK: "device",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "special file")


def read_file(path: str, most: int) -> bytes:
    """At most so many bytes of a regular file; never waits, as opening a pipe would.

    Raises:
        OSError: when it cannot be read, or is no regular file.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(0, "it is not a file")
        return file.read(most)


def counted(count: int, one: str, many: str = "") -> str:
    """'1 file', '1,200 files'."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def size_text(count: float) -> str:
    """Bytes for people: '64.0 MB', '1.2 GB'."""
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


def range_names(name: str, count: int) -> list[str]:
    """Names of rows."""
    return [f"{name}[{index}]" for index in range(count)]


def fingerprint(contents: Any, labels: Labels | None) -> str:
    """sha256 over what identifies the images, and their labels."""
    digest = hashlib.sha256(canonical_json(contents).encode())
    digest.update(b"no labels" if labels is None else labels.tobytes())
    return digest.hexdigest()
