"""Parquet files as streams: read by row groups, the columns that are wanted alone."""

from __future__ import annotations

import importlib.util
import math
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from distillkit.data.decoding import Damaged
from distillkit.data.files import HEAD, MOST_BYTES
from distillkit.data.hub import IMAGE_NAMES, LABEL_NAMES
from distillkit.data.labels import shown
from distillkit.data.member_arrays import arrays_in
from distillkit.data.prompt_files import COLUMNS, column_of
from distillkit.data.remote import RangeFile, RemoteFile
from distillkit.data.stream_index import NO_LABEL, FileIndex, IndexBuilder, Integers, Sample, Wanted
from distillkit.errors import DistillkitError, UsageError
from distillkit.text import printable

MOST_GROUP = 2**29
"""Bytes of the wanted columns of a row group, which is held in memory whole."""
ROWS_AT_ONCE = 64
FOOTERS_KEPT = 64
NPY = b"\x93NUMPY"
NUMBERS = ("float", "halffloat", "double", "int", "uint", "bool")


class ParquetFormat:
    """Parquet files as `Format` reads them."""

    name = "parquet"

    def __init__(self) -> None:
        self._footers: OrderedDict[str, Any] = OrderedDict()
        self._lock = Lock()

    def index(self, file: RemoteFile, wanted: Wanted) -> FileIndex:
        require_pyarrow(file.address)
        builder = IndexBuilder()
        with _opened(file, self._footer(file), ahead=True) as parquet:
            kinds = {name: parquet.schema_arrow.field(name).type for name in parquet.schema_arrow.names}
            chosen = _Columns.of(kinds, wanted, file.address)
            facts = {
                key.decode(errors="replace"): value.decode(errors="replace")
                for key, value in (parquet.schema_arrow.metadata or {}).items() if len(value) <= 200
            }  # fmt: skip
            sizes = [_group_bytes(parquet.metadata.row_group(g), chosen.held) for g in range(parquet.num_row_groups)]
            if sizes and max(sizes) > MOST_GROUP:
                raise UsageError(
                    f"{file.address}: a row group has {max(sizes):,} bytes in {', '.join(map(shown, chosen.held))}, "
                    f"and at most {MOST_GROUP:,} are held at once: write it with smaller ones (row_group_size=...)"
                )
            for group in range(parquet.num_row_groups):
                self._index_group(parquet, group, chosen, file, builder)
        builder.names.update(dict.fromkeys(kinds, len(builder)))
        return builder.built(zlib.crc32(file.read(0, min(HEAD, file.size))), sizes, facts)

    def _index_group(self, parquet: Any, group: int, chosen: _Columns, file: RemoteFile, builder: IndexBuilder) -> None:
        """Rows that hold an image or an array; the large columns themselves are not read."""
        row, columns = 0, [name for name in (chosen.caption, chosen.label) if name]
        rows = parquet.metadata.row_group(group).num_rows
        batches: Any = [None] if not columns else parquet.iter_batches(4096, [group], columns, use_threads=False)
        for batch in batches:
            texts, labels = ((batch.column(name).to_pylist() if name and batch is not None else None)
                             for name in (chosen.caption, chosen.label))  # fmt: skip
            for k in range(rows if batch is None else batch.num_rows):
                text = " ".join(str((texts[k] if texts else "") or "").split())
                label = NO_LABEL if labels is None or labels[k] is None else int(labels[k])
                if not NO_LABEL <= label < 10**6:
                    raise DistillkitError(
                        f"{file.address}, row {row:,} of group {group}: the label is {label}, no class number from 0"
                    )
                builder.add((group, row), text, label, image=bool(chosen.image), arrays=bool(chosen.arrays))
                row += 1

    def block(self, file: RemoteFile, places: Integers, wanted: Wanted) -> list[Sample]:
        group = int(places[0][0])
        footer = self._footer(file)
        with _opened(file, footer) as parquet:
            schema = parquet.schema_arrow
            chosen = _Columns.of({name: schema.field(name).type for name in schema.names}, wanted, file.address)
            batches, size = [], 0
            for batch in parquet.iter_batches(ROWS_AT_ONCE, [group], chosen.held, use_threads=False):
                size += batch.nbytes
                if size > 2 * MOST_GROUP:
                    raise DistillkitError(f"{file.address}: row group {group} has more bytes than it claims; refused")
                batches.append(batch)
        return [_Row(file, batches[row // ROWS_AT_ONCE], row, chosen) for _, row in places.tolist()]

    def _footer(self, file: RemoteFile) -> Any:
        """What the file says of its row groups; kept, since it lies at the other end of the file."""
        with self._lock:
            if file.address in self._footers:
                return self._footers[file.address]
        with _opened(file, None) as parquet:
            found = parquet.metadata
        with self._lock:
            self._footers[file.address] = found
            while len(self._footers) > FOOTERS_KEPT:
                self._footers.popitem(last=False)
        return found


def require_pyarrow(address: str) -> None:
    """Refuse where the library of parquet files is not installed.

    Raises:
        UsageError: with what to install.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UsageError(f"{address}: parquet files need another library: pip install 'distillkit[datasets]'")


class _opened:  # noqa: N801 - a function in use
    """A parquet file while it is read; its failures as messages."""

    def __init__(self, file: RemoteFile, footer: Any, *, ahead: bool = False) -> None:
        self._file, self._footer, self._ahead = file, footer, ahead

    def __enter__(self) -> Any:
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        # Without its own threads: they would seek in one file at once.
        chunk = 2**20 if self._ahead else 2**16
        try:
            return pq.ParquetFile(RangeFile(self._file, chunk), metadata=self._footer, pre_buffer=False)
        except Exception as error:
            self._fail(error)
            raise

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, DistillkitError):
            return
        reason = printable((str(error).splitlines() or [""])[0][:200])
        raise DistillkitError(f"cannot read {self._file.address}: {type(error).__name__}: {reason}") from error


class _Columns:
    """The columns that are read."""

    def __init__(self, image: str | None, label: str | None, caption: str | None, arrays: Sequence[str]) -> None:
        self.image, self.label, self.caption, self.arrays = image, label, caption, list(arrays)

    @property
    def held(self) -> list[str]:
        """Those that are read with every sample."""
        return [*([self.image] if self.image else []), *self.arrays]

    @classmethod
    def of(cls, kinds: Mapping[str, Any], wanted: Wanted, where: str) -> _Columns:
        """The columns that were asked for, or that are obvious.

        Raises:
            UsageError: where one is not there, or a choice has to be made.
        """
        columns = f"columns: {', '.join(shown(f'{name} ({kind})', 60) for name, kind in list(kinds.items())[:12])}"
        images = [name for name, kind in kinds.items() if _is_image(kind)]
        arrays = [name for name, kind in kinds.items() if _is_array(kind)]
        for option, asked, there in (
            ("image", wanted.image, images), ("label", wanted.label, list(kinds)),
            ("latent", wanted.latent, [*arrays, *images]),
        ):  # fmt: skip
            if asked is not None and asked not in there:
                raise UsageError(f"--data-{option}-column {shown(asked)}: {where} has no such column ({columns})")
        image = wanted.image or next((name for name in IMAGE_NAMES if name in images), None)
        if image is None and not arrays and not wanted.latent and len(images) > 1:
            raise UsageError(
                f"{where} has several columns of bytes: choose the images by --data-image-column ({columns})"
            )
        image = image or (images[0] if len(images) == 1 and not arrays and not wanted.latent else None)
        if wanted.latent and wanted.latent not in arrays:
            arrays, image = [wanted.latent, *arrays], None if image == wanted.latent else image
        if image is None and not arrays:
            raise UsageError(f"{where} has no column of images or latents ({columns})")
        texts = [name for name, kind in kinds.items() if str(kind) in ("string", "large_string")]
        caption = None
        if wanted.caption or any(name.lower() in COLUMNS for name in texts):
            caption = column_of(texts, wanted.caption, where, "--data-caption-column", "; columns of text count",
                                every=list(kinds), what="the captions are")  # fmt: skip
        integers = [name for name, kind in kinds.items() if str(kind).startswith(("int", "uint", "bool"))]
        if wanted.label and wanted.label not in integers:
            raise UsageError(f"--data-label-column {shown(wanted.label)}: streams take class numbers ({columns})")
        label = wanted.label or next((name for name in LABEL_NAMES if name in integers), None)
        return cls(image, label, caption, arrays)


def _is_image(kind: Any) -> bool:
    """Whether a column is of bytes, or of `datasets`' images."""
    if str(kind).startswith("struct"):
        return {kind.field(k).name for k in range(kind.num_fields)} == {"bytes", "path"}
    return str(kind) in ("binary", "large_binary")


def _is_array(kind: Any) -> bool:
    """Whether a column is of lists of numbers, nested or not."""
    kind = getattr(kind, "storage_type", kind)
    if not str(kind).startswith(("list", "large_list", "fixed_size_list")):
        return False
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    return str(kind).startswith(NUMBERS)


def _group_bytes(group: Any, columns: Sequence[str]) -> int:
    """Of some columns in a row group, unpacked."""
    held = (group.column(k) for k in range(group.num_columns))
    return sum(int(c.total_uncompressed_size) for c in held if c.path_in_schema.partition(".")[0] in columns)


class _Row:
    """A row of a batch that is held."""

    def __init__(self, file: RemoteFile, batch: Any, row: int, columns: _Columns) -> None:
        self._file, self._batch, self._row, self._columns = file, batch, row, columns

    def image(self, most: int) -> bytes:
        value = self._value(str(self._columns.image))
        found = value.as_py() if value is not None else None
        if isinstance(found, dict):
            if found.get("bytes") is None and found.get("path"):
                raise Damaged(f"{self._where()} names a file and holds no image; paths in data are not followed")
            found = found.get("bytes")
        if not found:
            raise Damaged(f"{self._where()} holds no image")
        return bytes(found[:most])

    def arrays(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        found: dict[str, Tensor] = {}
        facts: dict[str, str] = {}
        for name in self._columns.arrays:
            value = self._value(name)
            if value is None:
                continue
            where = f"{self._where()}, {shown(name)}"
            if str(value.type) in ("binary", "large_binary"):
                data = memoryview(value.as_buffer()).cast("B")
                kind = ".npy" if data[:6] == NPY else ".safetensors"
                arrays, recorded = arrays_in(data, kind, name.lower(), where)
                # The column is the name, whatever the file in it calls its only array.
                arrays = {name.lower(): next(iter(arrays.values()))} if len(arrays) == 1 else arrays
                found, facts = {**found, **arrays}, {**facts, **recorded}
            else:
                found[name.lower()] = _numbers(value, where)
        return found, facts

    def _value(self, name: str) -> Any:
        value = self._batch.column(name)[self._row % ROWS_AT_ONCE]
        return value if value.is_valid else None

    def _where(self) -> str:
        return f"{self._file.address}, row {self._row:,} of its group"


def _numbers(scalar: Any, where: str) -> Tensor:
    """Nested lists of numbers as a tensor; the shape of a tensor column where it has one.

    Raises:
        DistillkitError: when lists of one level differ in length.
    """
    shape = list(getattr(scalar.type, "shape", ()))
    scalar = getattr(scalar, "value", scalar)
    values, lengths = scalar.values, [len(scalar.values)]
    while hasattr(values.type, "value_type") and not str(values.type).startswith("dictionary"):
        inner = values.flatten()
        if len({len(part) for part in values}) > 1:
            raise DistillkitError(f"{where}: lists of one level differ in length")
        lengths.append(len(inner) // max(1, len(values)))
        values = inner
    if values.null_count or values.nbytes > MOST_BYTES:
        raise DistillkitError(f"{where}: numbers are missing, or there are more than {MOST_BYTES:,} bytes of them")
    found = torch.from_numpy(values.to_numpy(zero_copy_only=False).copy())
    return found.reshape(shape if shape and math.prod(shape) == len(found) else lengths)
