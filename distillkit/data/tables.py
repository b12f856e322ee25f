"""Images that a table lists with their captions: csv, tsv or jsonl beside them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from distillkit.data.decoding import Damaged
from distillkit.data.files import MOST_BYTES, ImageFiles, counted, fingerprint, read_file
from distillkit.data.labels import shown
from distillkit.data.prompt_files import COLUMNS, Row, column_of, rows_in
from distillkit.errors import UsageError

IMAGES = ("image", "file_name", "filename", "image_path", "path", "file", "img")
"""Columns of paths that are taken where none is named."""
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")


class TableImages(ImageFiles):
    """Image files that the rows of a table name, by paths from its folder; rows without a path are left out.

    Raises:
        UsageError: when it names none, or a choice of columns has to be made.
        DistillkitError: when it is damaged.
    """

    labels = None

    def __init__(self, path: Path, image: str | None, caption: str | None) -> None:
        self.root, self.path = os.path.join(path.parent, ""), path  # noqa: PTH118
        listed = list(captioned_rows(rows_in(path), path, image, caption))
        taken = [(name, text) for name, text in listed if name]
        self.names = [name for name, _ in taken]
        texts = [text for _, text in taken]
        self.captions = texts if any(texts) else None
        self.notes = ["no classes"]
        if len(taken) < len(listed):
            self.left_out = [f"{counted(len(listed) - len(taken), 'row')} without an image"]
        self.fingerprint = fingerprint([[name, self._size(name)] for name in self.names], None)

    def read(self, index: int, most: int = MOST_BYTES) -> bytes:
        try:
            return read_file(self.root + self.names[index], most)
        except (OSError, ValueError) as error:
            raise Damaged(f"cannot read the image {self.where(index)}: {_reason(error)}") from error

    def where(self, index: int) -> str:
        return f"{shown(self.root + self.names[index], 1000)} (of {self.path.name})"

    def _size(self, name: str) -> int:
        try:
            return os.stat(self.root + name).st_size  # noqa: PTH116
        except (OSError, ValueError):
            return -1


def captioned_rows(
    rows: Iterable[tuple[int, Row]], path: Path, image: str | None = None, caption: str | None = None, *,
    required: bool = False,
) -> Iterator[tuple[str, str]]:  # fmt: skip
    """(path of an image, caption) of each row of a table; empty texts where it has none.

    Args:
        path: of the table, for messages.
        image, caption: columns; by default those of usual names.
        required: whether there must be captions.

    Raises:
        UsageError: for a column that is not there or not obvious.
        DistillkitError: when the table is damaged.
    """
    columns: tuple[str, str | None] | None = None
    for number, row in rows:
        where = f"{path}, row {number:,}"
        if columns is None:
            columns = (
                column_of(list(row), image, where, "--data-image-column", usual=IMAGES, what="the images are"),
                _caption_column(row, caption, where, required=required),
            )
        name, text = row.get(columns[0]), row.get(columns[1]) if columns[1] else None
        for value, column in ((name, columns[0]), (text, columns[1])):
            if value is not None and not isinstance(value, str):
                raise UsageError(f"{where}: text is due in {shown(str(column), 60)}")
        yield str(name or "").strip(), str(text or "").strip()


def _caption_column(row: Row, asked: str | None, where: str, *, required: bool) -> str | None:
    """The column of captions; None where there is none of a usual name."""
    if asked is None and not required and not any(name.lower() in COLUMNS for name in row):
        return None
    return column_of(list(row), asked, where, "--data-caption-column", what="the captions are")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
