"""Texts in files: one a line, or a column of a table; read as a stream, whatever the size."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from distillkit.data.labels import shown
from distillkit.errors import DistillkitError, UsageError
from distillkit.reading import Missing, Unreadable, parse_json, read_json, regular_file, unlike
from distillkit.text import printable

Numbered = Iterator[tuple[int, str | None]]
"""(number of a line, row or entry from 1, text); no text where there is none."""

Row = Mapping[str, Any]
"""Of a table: values by column."""

LONGEST_LINE = 2**20
"""Bytes of a line, or characters of a row."""
LARGEST_JSON = 2**27
"""Bytes of a file that is one JSON value, which is read whole."""

COLUMNS = ("prompt", "prompts", "caption", "captions", "text", "texts", "description", "title", "sentence")
"""Columns that are taken where none is named."""


def texts_in(path: Path, column: str | None, option: str) -> Numbered:
    """The texts of a file, by the end of its name: .csv, .tsv, .jsonl, .json, .parquet; one a line in any other.

    Args:
        column: of a table, or key of JSON objects; by default the only one of a usual name.
        option: by which a column is chosen, for messages.

    Raises:
        UsageError: when there is no file, or a choice has to be made.
        DistillkitError: when it is damaged or not text.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name a file of prompts (txt, csv, tsv, jsonl, json, parquet)")
    kind = path.suffix.lower()
    readers: dict[str, Callable[[Path, str | None, str], Numbered]] = {
        ".csv": _table, ".tsv": _table, ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json,
        ".parquet": _parquet,
    }  # fmt: skip
    if kind not in readers and column is not None:
        raise UsageError(f"{option} is for tables ({', '.join(readers)}), and {path} has one prompt a line")
    try:
        yield from readers[kind](path, column, option) if kind in readers else _lines(path)
    except Missing as error:
        raise UsageError(f"no prompts in {path}: there is no such file") from error


def _lines(path: Path) -> Numbered:
    with regular_file(path) as (file, _):
        for number, line in _raw_lines(file, path):
            yield number, _text(line, path, number)


def _raw_lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers from 1, whatever is between them; never one without bounds."""
    head = file.read(512)
    if head and (what := unlike(head)):
        raise Unreadable(f"cannot read {path}: {what}")
    file.seek(3 if head.startswith(b"\xef\xbb\xbf") else 0)
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            raise UsageError(f"{path}, line {number:,}: more than {LONGEST_LINE:,} bytes; is it a file of text?")
        yield number, line


def _text(data: bytes, path: Path, number: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(
            f"cannot read {path}: line {number:,} is not UTF-8 text (byte {error.start:,} of it); save it as UTF-8"
        ) from error


def _table(path: Path, column: str | None, option: str) -> Numbered:
    """A column of a file whose first line names its columns, separated by commas or tabs."""
    with regular_file(path) as (file, _):
        header, rows = _rows(file, path)
        place = header.index(column_of(header, column, str(path), option, "; the first line names them"))
        for number, row in rows:
            yield number, row[place] if place < len(row) else None


def _rows(file: BinaryIO, path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The names of the columns, and the rows with their numbers."""
    lines = (_text(line, path, number) for number, line in _raw_lines(file, path))
    table = csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)

    def numbered() -> Iterator[tuple[int, list[str]]]:
        number = 0
        try:
            for number, row in enumerate(table, 1):
                yield number, row
        except csv.Error as error:
            raise Unreadable(f"cannot read {path}: row {number:,} or the one after it: {error}") from error

    rows = numbered()
    header = [name.strip() for name in next(rows, (1, []))[1]]
    if not any(header):
        raise UsageError(f"nothing is in {path}: it is empty")
    return header, rows


def _json_lines(path: Path, column: str | None, option: str) -> Numbered:
    """An object or a text in each line."""
    with regular_file(path) as (file, _):
        chosen = column
        for number, line in _raw_lines(file, path):
            if not line.strip():
                yield number, None
                continue
            entry = parse_json(line, f"{path}, line {number:,}")
            if isinstance(entry, dict) and chosen is None:
                chosen = column_of(list(entry), None, f"{path}, line {number:,}", option)
            yield number, _entry(entry, chosen, f"{path}, line {number:,}", option)


def _json(path: Path, column: str | None, option: str) -> Numbered:
    """A list of texts or of objects."""
    entries = read_json(path, most=LARGEST_JSON, values=LARGEST_JSON)
    if not isinstance(entries, list):
        raise UsageError(f"{path} holds no list: a list of prompts, or of objects of which one key is the prompt")
    first = next((entry for entry in entries if isinstance(entry, dict)), None)
    if first is not None and column is None:
        column = column_of(list(first), None, str(path), option)
    for number, entry in enumerate(entries, 1):
        yield number, _entry(entry, column, f"{path}, entry {number:,}", option)


def _entry(entry: Any, column: str | None, where: str, option: str) -> str | None:
    value = entry
    if isinstance(entry, dict):
        assert column is not None
        if column not in entry:
            column_of(list(entry), column, where, option)
        value = entry[column]
    if value is None or isinstance(value, str):
        return value
    raise UsageError(f"{where}: text is due there, and it is {_kind(value)}")


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", bool: "true or false"}.get(type(value), "a number")


def _parquet(path: Path, column: str | None, option: str) -> Numbered:
    """A column of texts, in the batches that pyarrow reads."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UsageError(f"{path}: parquet files need another library: pip install 'distillkit[datasets]'")
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    with regular_file(path):
        pass
    try:
        with pq.ParquetFile(path) as file:
            kinds = {field.name: str(field.type) for field in file.schema_arrow}
            texts = [name for name, kind in kinds.items() if kind in ("string", "large_string")]
            chosen = column_of(texts, column, str(path), option, "; columns of text count", every=list(kinds))
            number = 0
            for batch in file.iter_batches(batch_size=4096, columns=[chosen]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    yield number, text
    except DistillkitError:
        raise
    except Exception as error:  # pyarrow raises many kinds
        reason = str(error).partition("\n")[0][:200]
        raise Unreadable(f"cannot read {path}: {type(error).__name__}: {printable(reason)}") from error


def column_of(
    there: Sequence[str], asked: str | None, where: str, option: str, hint: str = "", every: Sequence[str] = (),
    usual: Sequence[str] = COLUMNS, what: str = "the prompts are",
) -> str:  # fmt: skip
    """The column that was asked for, or the first of the usual names.

    Args:
        every: all columns, where some are none of text.
        usual: names that are taken where none is asked for.
        what: is in the column, for messages.

    Raises:
        UsageError: when it is not there or not obvious; names those that are.
    """
    columns = f"columns: {_listed(every or there)}{hint}"
    if asked is not None:
        if asked not in there:
            raise UsageError(f"{option} {printable(asked[:80])}: {where} has no such column of text ({columns})")
        return asked
    for name in usual:
        found = [column for column in there if column.lower() == name]
        if len(found) == 1:
            return found[0]
        if found:
            break
    raise UsageError(f"{where} does not say which column {what} ({columns}): name it by {option}")


def rows_in(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a csv, tsv or jsonl file with their numbers, values by column.

    Raises:
        UsageError: for lines that are no objects, or an empty table.
        DistillkitError: when it is damaged.
    """
    with regular_file(path) as (file, _):
        yield from rows_of(file, path)


def rows_of(file: BinaryIO, path: Path) -> Iterator[tuple[int, Row]]:
    """As `rows_in`, of an open file; `path` says what it is and what it is called."""
    if path.suffix.lower() in (".csv", ".tsv"):
        header, rows = _rows(file, path)
        yield from ((number, dict(zip(header, row, strict=False))) for number, row in rows)
        return
    for number, line in _raw_lines(file, path):
        if line.strip():
            entry = parse_json(line, f"{path}, line {number:,}")
            if not isinstance(entry, dict):
                raise UsageError(f"{path}, line {number:,}: an object is due there")
            yield number, entry


def _listed(names: Sequence[str]) -> str:
    return ", ".join(shown(name, 60) for name in names[:12]) + (", ..." if len(names) > 12 else "") or "none"


def hub_texts(repository: str, split: str, column: str | None, option: str) -> tuple[Numbered, str]:
    """A column of a data set of the hub or its cache, and what identifies its contents.

    Raises:
        UsageError: for a column that is not there or not obvious.
        DistillkitError: when the data set cannot be had.
    """
    from distillkit.data.hub import open_dataset

    data = open_dataset("load_dataset", repository, split=split)
    name = f"hf:{repository}"
    texts = [key for key, feature in data.features.items() if str(getattr(feature, "dtype", "")).endswith("string")]
    chosen = column_of(texts, column, name, option, "; columns of text count", every=list(data.features))

    def rows() -> Numbered:
        number = 0
        for batch in data.select_columns([chosen]).with_format("arrow").iter(batch_size=4096):
            for text in batch[chosen].to_pylist():
                number += 1
                yield number, text

    return rows(), f"{getattr(data, '_fingerprint', name)} {chosen}"
