"""Images in data sets of Hugging Face's library `datasets`: from the hub, saved, or in parquet files."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from distillkit.data.decoding import Damaged, is_image_name
from distillkit.data.files import MOST_BYTES, ImageFiles, counted, fingerprint, read_file
from distillkit.data.labels import Labels, check_labels, shown
from distillkit.data.prompt_files import COLUMNS, column_of
from distillkit.data.prompts import kept_texts
from distillkit.errors import DistillkitError, UsageError

LABEL_NAMES = ("label", "labels", "class", "class_id", "class_label", "target", "category", "y")
"""Columns of integers or text that are labels without being said to be."""

IMAGE_NAMES = ("image", "img", "images", "jpg", "png", "webp", "picture")

SHARD = re.compile(r"(.+?)-\d+-of-\d+")


@dataclass(frozen=True)
class Columns:
    """The columns that were asked for."""

    image: str | None = None
    label: str | None = None
    caption: str | None = None


class HubImages(ImageFiles):
    """A Hugging Face data set with a column of images and perhaps one of labels; rows without an image are left out.

    Raises:
        UsageError: when it has no column of images, or several without one that is obvious.
        DistillkitError: when a label is none.
    """

    def __init__(self, dataset: Any, name: str, columns: Columns) -> None:
        import datasets

        if not len(dataset):
            raise UsageError(f"no images in {name}: it has no rows")
        self.name = name
        self.notes: list[str] = []
        self.left_out: list[str] = []
        self.column = self._image_column(dataset, columns.image)
        label = self._label_column(dataset, columns.label)
        if isinstance(dataset.features[self.column], datasets.Image):
            dataset = dataset.cast_column(self.column, datasets.Image(decode=False))
        self._rows = _filled(dataset, self.column)
        if empty := len(dataset) - len(self._rows):
            first = int(np.setdiff1d(np.arange(len(dataset)), self._rows)[0])
            self.left_out.append(f"{counted(empty, 'row')} without an image (such as row {first})")
        if not len(self._rows):
            raise UsageError(f"no images in {name}: the column {shown(self.column)} is empty")
        self._captions = self._caption_column(dataset, columns.caption, label)
        self._data = dataset.select_columns([self.column])
        self.names = [f"row {row}" for row in self._rows]
        self.labels = None if label is None else self._labels(dataset, label)
        unused = sorted(set(dataset.features) - {self.column, label, self._captions})
        if unused:
            self.left_out.append(f"the {'column' if len(unused) == 1 else 'columns'} {_listed(unused)}")
        self._whole = dataset
        self.fingerprint = fingerprint([str(getattr(dataset, "_fingerprint", name)), len(dataset)], self.labels)

    @cached_property
    def captions(self) -> Sequence[str] | None:  # type: ignore[override]
        if self._captions is None:
            return None
        # Indexed after it is cut to the column: rows of images are large.
        texts = self._whole.select_columns([self._captions]).select(self._rows)
        column = self._captions
        return kept_texts((text or "").strip() for batch in texts.iter(batch_size=4096) for text in batch[column])

    def read(self, index: int, most: int = MOST_BYTES) -> bytes:
        try:
            entry = self._data[int(self._rows[index])][self.column]
            if isinstance(entry, bytes):
                return entry[:most]
            if entry.get("bytes") is not None:
                return bytes(entry["bytes"])[:most]
            return read_file(entry["path"], most)
        except OSError as error:
            raise Damaged(f"cannot read the image {self.where(index)}: {error.strerror or error}") from error
        except Exception as error:  # the library raises many kinds
            raise Damaged(f"cannot read the image {self.where(index)}: {_reason(error)}") from error

    def where(self, index: int) -> str:
        return f"{self.name}, {self.names[index]}"

    def _image_column(self, dataset: Any, asked: str | None) -> str:
        """The column of images, by its type or by what is in it."""
        found = [name for name, feature in dataset.features.items() if _may_be_images(feature)]
        if asked is not None:
            if asked not in found:
                raise UsageError(
                    f"--data-image-column {asked}: {self.name} has no such column of images (columns of images: "
                    f"{_listed(found) or 'none'}; all: {_listed(list(dataset.features))})"
                )
            return asked
        if not found:
            raise UsageError(f"{self.name} has no column of images (columns: {_listed(list(dataset.features))})")
        obvious = [name for name in IMAGE_NAMES if name in found][:1] or found
        if len(obvious) > 1:
            raise UsageError(
                f"{self.name} has several columns of images ({_listed(found)}): choose one by --data-image-column"
            )
        if len(found) > 1:
            self.notes.append(f"images are the column {shown(obvious[0])} of {_listed(found)}")
        return obvious[0]

    def _label_column(self, dataset: Any, asked: str | None) -> str | None:
        """The column of labels: the one that says so, or one of integers or text of a usual name."""
        import datasets

        features = dataset.features
        if asked is not None:
            if asked not in features or asked == self.column:
                raise UsageError(
                    f"--data-label-column {asked}: {self.name} has no such column (columns: {_listed(list(features))})"
                )
            return asked
        found = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        found = found or [name for name in LABEL_NAMES if _plain(features.get(name)) in ("int", "str", "bool")]
        obvious = [name for name in LABEL_NAMES if name in found][:1] if len(found) > 1 else found
        if len(found) > 1 and not obvious:
            raise UsageError(
                f"{self.name} has several columns of labels ({_listed(found)}): choose one by --data-label-column"
            )
        if len(found) > 1:
            self.notes.append(f"labels are the column {shown(obvious[0])} of {_listed(found)}")
        return obvious[0] if obvious else None

    def _caption_column(self, dataset: Any, asked: str | None, label: str | None) -> str | None:
        """The column of captions: text of a usual name; None where there is none."""
        texts = [name for name, feature in dataset.features.items() if _plain(feature) == "str" and name != label]
        if asked is None and not any(name.lower() in COLUMNS for name in texts):
            return None
        return column_of(texts, asked, self.name, "--data-caption-column", "; columns of text count",
                         every=list(dataset.features), what="the captions are")  # fmt: skip

    def _labels(self, dataset: Any, column: str) -> Labels:
        import datasets

        feature, where = dataset.features[column], f"{self.name}, column {shown(column)}"
        values: list[Any] = dataset.select_columns([column])[:][column]
        values = [values[row] for row in self._rows]
        kind = "int" if isinstance(feature, datasets.ClassLabel) else _plain(feature)
        if kind not in ("int", "str", "bool"):
            raise UsageError(f"{where} holds {feature}, which are no labels: they are integers or text")
        if missing := [name for name, value in zip(self.names, values, strict=True) if value is None]:
            raise DistillkitError(f"{where}: {missing[0]} has no label ({len(missing):,} are without)")
        if kind == "str":
            self.class_names = tuple(sorted(set(values)))
            number = {name: index for index, name in enumerate(self.class_names)}
            values = [number[value] for value in values]
        elif isinstance(feature, datasets.ClassLabel):
            self.class_names = tuple(feature.names or ())
        return check_labels([int(value) for value in values], self.names, where)


def is_hub(path: str) -> bool:
    """Whether a path names a data set of the hub, `hf:ORG/NAME`; `hf://` is the hub as a filesystem."""
    return path.startswith("hf:") and not path.startswith("hf://")


def from_hub(name: str, columns: Columns) -> HubImages:
    """`ORG/NAME[:SPLIT]` from the hub or its cache, the split `train` by default.

    Raises:
        UsageError: for what is no such name.
        DistillkitError: when it cannot be had.
    """
    repository, _, split = name.partition(":")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", repository):
        raise UsageError(f"--data hf:{shown(name)}: write it as hf:ORG/NAME or hf:ORG/NAME:SPLIT")
    return HubImages(open_dataset("load_dataset", repository, split=split or "train"), f"hf:{name}", columns)


def from_parquet(paths: Sequence[Path], name: str, columns: Columns) -> HubImages:
    """Parquet files as one data set."""
    files = [str(path) for path in paths]
    return HubImages(open_dataset("load_dataset", "parquet", data_files=files, split="train"), name, columns)


def saved_in(folder: Path, columns: Columns) -> HubImages | None:
    """A data set that `save_to_disk` wrote, or a folder of parquet files; None for any other folder.

    Raises:
        UsageError: when it holds several parts, such as train and test.
    """
    if (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file():
        return HubImages(open_dataset("load_from_disk", str(folder)), str(folder), columns)
    if (folder / "dataset_dict.json").is_file():
        found = open_dataset("load_from_disk", str(folder))
        splits = {name: len(rows) for name, rows in found.items()}
        name = _one_split(folder, splits, "/")
        return HubImages(found[name], str(folder / name), columns)
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    parquet = [name for name in names if name.lower().endswith(".parquet")]
    if parquet and not any(is_image_name(name) for name in names):
        parts = {match[1] for name in parquet if (match := SHARD.match(name))}
        if len(parts) > 1:
            raise UsageError(
                f"{folder} holds the parts {_listed(sorted(parts))} of a data set: keep each in a folder of "
                "its own, and name one"
            )
        return from_parquet([folder / name for name in parquet], str(folder), columns)
    return None


def _one_split(folder: Path, splits: dict[str, int], between: str) -> str:
    if len(splits) != 1:
        held = ", ".join(f"{shown(name)} ({rows:,} rows)" for name, rows in splits.items()) or "nothing"
        one = "train" if "train" in splits else next(iter(splits), "NAME")
        raise UsageError(f"{folder} holds {held}: name one, such as --data {folder}{between}{shown(one)}")
    return next(iter(splits))


def require_datasets() -> None:
    """Refuse where Hugging Face's library is not installed.

    Raises:
        UsageError: with what to install.
    """
    if importlib.util.find_spec("datasets") is None:
        raise UsageError("Hugging Face datasets need another library: pip install 'distillkit[datasets]'")


def open_dataset(function: str, *arguments: Any, **options: Any) -> Any:
    """What a function of the library gives.

    Raises:
        UsageError: where the library is not installed.
        DistillkitError: when the data set cannot be had.
    """
    require_datasets()
    import datasets

    try:
        return getattr(datasets, function)(*arguments, **options)
    except Exception as error:  # the library raises many kinds
        what = options["data_files"][0] if "data_files" in options else arguments[0]
        raise DistillkitError(f"cannot open the data set {what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _may_be_images(feature: Any) -> bool:
    """Whether a column is of images, or of bytes, which then must be image files."""
    import datasets

    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", "") in ("binary", "large_binary")


def _plain(feature: Any) -> str:
    """ "int", "str", "bool" or nothing: the kind of a column of single values."""
    kind = str(getattr(feature, "dtype", ""))
    if kind.startswith(("int", "uint")):
        return "int"
    return {"string": "str", "large_string": "str", "bool": "bool"}.get(kind, "")


def _filled(dataset: Any, column: str) -> Any:
    """Numbers (N,) of the rows that hold an image."""
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    there = []
    for batch in dataset.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        values = batch[column]
        valid = pc.is_valid(values)
        if hasattr(values.type, "fields") and values.type.num_fields:
            inner = pc.or_(pc.is_valid(pc.struct_field(values, "bytes")), pc.is_valid(pc.struct_field(values, "path")))
            valid = pc.and_(valid, inner)
        there.append(valid.to_numpy() if hasattr(valid, "chunks") else valid.to_numpy(zero_copy_only=False))
    return np.flatnonzero(np.concatenate(there))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(shown(name, 60) for name in names[:8]) + (", ..." if len(names) > 8 else "")
