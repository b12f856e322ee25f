"""The one door for files that describe something: JSON and YAML from anywhere, bounded, validated, never executed.

Whatever is wrong with a file ends in one `Unreadable`, which names the file and the field and says what is wrong.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from distillkit.errors import DistillkitError
from distillkit.text import printable, short

MOST_BYTES = 4 * 2**20
"""Of a description. Files that list something are given a larger bound where they are read."""
MOST_YAML_BYTES = 2**18
MOST_VALUES = 500_000
"""Keys, numbers and texts of a description, what YAML's aliases repeat included."""
MOST_YAML_VALUES = 20_000
DEEPEST = 64
LONGEST_NUMBER = 100
"""Characters of a number in YAML; some spellings take quadratic time."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The safe one; in C where that is installed, which is ten times as fast."""

Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")


class Unreadable(DistillkitError):
    """A file that cannot be read, is damaged, or does not say what it should."""


class Missing(Unreadable):
    """There is no such file."""


@contextmanager
def regular_file(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file, opened, and its size; pipes and devices, which may never end, are refused.

    Raises:
        Missing: when there is no such file.
        Unreadable: when it is no regular file, or it cannot be read while it is open here.
    """
    try:
        # A pipe would wait here for somebody to write.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as error:
        raise Missing(f"{path}: No such file") from error
    except (OSError, ValueError) as error:
        raise Unreadable(f"cannot read {path}: {_reason(error)}") from error
    try:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            kind = "a folder" if stat.S_ISDIR(state.st_mode) else "a pipe or a device"
            raise Unreadable(f"cannot read {path}: it is {kind}, and a regular file is due there")
        with open(handle, "rb", closefd=False) as file:
            yield file, state.st_size
    except OSError as error:
        raise Unreadable(f"cannot read {path}: {_reason(error)}") from error
    finally:
        os.close(handle)


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """A regular file whole.

    Raises:
        Missing, Unreadable: as `regular_file`, and when it has more than `most` bytes.
    """
    with regular_file(path) as (file, size):
        if size > most:
            raise Unreadable(f"cannot read {path}: it has {size:,} bytes; at most {most:,} are read of its kind")
        return file.read(size)


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """A text file in UTF-8.

    Raises:
        Missing, Unreadable: as `read_bytes`, and when it is not UTF-8.
    """
    return _decoded(read_bytes(path, most), str(path))


def read_json(path: Path, *, most: int = MOST_BYTES, values: int = MOST_VALUES) -> Any:
    """The content of a JSON file as plain values.

    Raises:
        Missing, Unreadable: as `read_bytes` and `parse_json`.
    """
    return parse_json(read_bytes(path, most), str(path), values=values)


def read_mapping(path: Path, *, most: int = MOST_BYTES) -> dict[str, Any]:
    """The content of a JSON file that holds one object.

    Raises:
        Missing, Unreadable: as `read_json`, and for anything but an object.
    """
    found = read_json(path, most=most)
    if not isinstance(found, dict):
        raise Unreadable(f"cannot read {path}: it holds {short(found)}, not an object {{...}}")
    return found


def read_model(path: Path, model: type[Model], *, most: int = MOST_BYTES) -> Model:
    """The content of a JSON file as a model.

    Raises:
        Missing, Unreadable: as `read_json` and `validated`.
    """
    return validated(model, read_json(path, most=most), str(path))


def parse_json(data: bytes, where: str, *, values: int = MOST_VALUES) -> Any:
    """JSON as plain values.

    Args:
        where: the file, for messages.
        values: how many there may be.

    Raises:
        Unreadable: when it is not JSON in UTF-8, has more values, is nested deeper than `DEEPEST`, repeats a key, or
            holds NaN, infinity, integers beyond 64 bits or text that is none; with the field.
    """
    text = _decoded(data, where)
    # Counted before anything is made of them: a value takes up to fifty times the bytes that it is written in.
    if (count := sum(data.count(sign) for sign in (b",", b"[", b"{"))) > values:
        raise Unreadable(f"cannot read {where}: it holds about {count:,} values; at most {values:,} are read")
    try:
        found = json.loads(text, object_pairs_hook=_without_repetition)
    except RecursionError as error:
        raise Unreadable(f"cannot read {where}: it is nested deeper than {DEEPEST} levels") from error
    except ValueError as error:
        what = f"not valid JSON: {str(error).partition(';')[0]}"
        raise Unreadable(f"cannot read {where}: {unlike(data[:512]) or what}") from error
    _check_plain(found, where)
    return found


def json_lines(path: Path, *, most: int, say: Callable[[str], None] | None = None) -> Iterator[dict[str, Any]]:
    """The objects of a file that has one in each line; other lines, as a power loss leaves them, are passed over.

    Args:
        say: hears how many lines were passed over.

    Raises:
        Missing, Unreadable: as `read_bytes`.
    """
    passed = 0
    for number, line in enumerate(read_bytes(path, most).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line, f"{path}:{number}")
        except Unreadable:
            entry = None
        if isinstance(entry, dict):
            yield entry
        else:
            passed += 1
    if passed and say:
        say(f"{path}: {passed:,} damaged lines were passed over")


@dataclass(frozen=True)
class Yaml:
    """A YAML file's values, and its nodes, which know their lines."""

    values: Any
    root: yaml.Node | None


def read_yaml(path: Path) -> Yaml:
    """The content of a YAML file.

    Raises:
        Missing, Unreadable: as `read_bytes` and `parse_yaml`.
    """
    return parse_yaml(_decoded(read_bytes(path, MOST_YAML_BYTES), str(path)), str(path))


def parse_yaml(text: str, where: str) -> Yaml:
    """YAML as plain values. Aliases may be used as long as what they repeat stays within `MOST_YAML_VALUES`.

    Raises:
        Unreadable: when it is not YAML, or asks for more values or levels; with the line.
    """
    try:
        _check_events(yaml.parse(text, Loader=_LOADER), where)
        root = yaml.compose(text, Loader=_LOADER)
        values = None if root is None else _LOADER("").construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{where}:{mark.line + 1}" if mark else where
        raise Unreadable(f"{line}: not valid YAML: {getattr(error, 'problem', None) or _reason(error)}") from error
    except RecursionError as error:
        raise Unreadable(f"{where}: it is nested deeper than {DEEPEST} levels") from error
    except (ValueError, OverflowError, TypeError, KeyError, AttributeError) as error:  # dates and numbers that are none
        raise Unreadable(f"{where}: not valid YAML: {_reason(error)}") from error
    return Yaml(values, root)


def validated(model: type[Model], values: Any, where: str) -> Model:
    """Values from a file as a model.

    Raises:
        Unreadable: naming the first field that does not fit, what it holds and what is right.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise Unreadable(f"cannot read {where}: {first_problem(error)}") from error


def adapted(adapter: TypeAdapter[Value], values: Any, where: str) -> Value:
    """As `validated`, for what is not one model.

    Raises:
        Unreadable: as `validated`.
    """
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        raise Unreadable(f"cannot read {where}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """'schedule.sigma_min: Input should be greater than 0 (it is -1.0)', and how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    place = "".join(f"{part}." for part in first["loc"])[:-1]
    place += ": " if place else ""
    is_plain = not isinstance(first["input"], dict | BaseModel) or first["type"].endswith("_type")
    holds = f" (it is {short(first['input'])})" if first["type"] != "missing" and is_plain else ""
    more = f"; {len(problems) - 1} more problems" if len(problems) > 1 else ""
    return printable(f"{place}{first['msg'].removeprefix('Value error, ')}{holds}{more}")


_OTHERS = (
    (
        r"version https://git-lfs\.github\.com/spec/",
        "it is a Git LFS pointer and not the file itself: run `git lfs pull` in its repository, or download the file "
        "from its page",
    ),
    (
        r"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html|head|\?xml|!--)",
        "it is a web page and not the file: a login or an error was saved under its name; download it again",
    ),
    (r"\x1f\x8b", "it is compressed by gzip: unpack it first (gunzip)"),
    (r"7z\xbc\xaf|Rar!|(?s:.{257})ustar", "it is an archive: unpack it first"),
    (r"\0*\Z", "it holds zeros alone, as an interrupted copy or a power loss leaves it; copy or download it again"),
)
OTHERS = tuple((re.compile(pattern.encode("latin-1")), what) for pattern, what in _OTHERS)
"""What the beginnings of files show that have been saved under another's name."""


def unlike(head: bytes) -> str:
    """What the first bytes show where something else was saved under a file's name; empty where they show nothing."""
    if not head:
        return "it is empty; copy or download it again"
    return next((what for pattern, what in OTHERS if pattern.match(head)), "")


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")  # some editors begin UTF-8 with a mark
    except UnicodeDecodeError as error:
        what = unlike(data[:512]) or f"it is not UTF-8 text (byte {error.start:,})"
        raise Unreadable(f"cannot read {where}: {what}") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {short(twice)} is given twice")
    return found


def _check_plain(value: Any, where: str) -> None:
    """Refuse what JSON's reader lets through and nothing can use. Without recursion, for depth is one of them."""
    # Beside each value, the way to it: (the way to its parent, its key), spelt out only for a message.
    waiting: list[tuple[Any, Any, int]] = [(value, None, 0)]
    while waiting:
        found, way, depth = waiting.pop()
        kind = type(found)
        if kind is str:
            if not found.isascii() and _has_surrogates(found):
                raise Unreadable(f"cannot read {where}: {_spelt(way)}: it is no text: it holds half a character")
        elif kind is dict or kind is list:
            if depth == DEEPEST:
                raise Unreadable(f"cannot read {where}: it is nested deeper than {DEEPEST} levels")
            items: Iterable[tuple[Any, Any]] = found.items() if kind is dict else enumerate(found)
            for key, inner in items:
                if kind is dict and not key.isascii() and _has_surrogates(key):
                    raise Unreadable(f"cannot read {where}: {_spelt(way)}: a key is no text: it holds half a character")
                waiting.append((inner, (way, key), depth + 1))
        elif kind is float and not math.isfinite(found):
            raise Unreadable(f"cannot read {where}: {_spelt(way)}: it is {found}, and a finite number is due")
        elif kind is int and found.bit_length() > 64:
            raise Unreadable(f"cannot read {where}: {_spelt(way)}: an integer of more than 64 bits")


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _spelt(way: Any) -> str:
    keys: list[str] = []
    while way is not None:
        way, key = way
        keys.append(str(key)[:80])
    return printable(".".join(reversed(keys))) or "its value"


_NUMBER = re.compile(r"[-+0-9.]")


def _check_events(events: Iterable[yaml.Event], where: str) -> None:
    """Count what a YAML text asks for before it is made: values, levels, and what aliases repeat."""
    counts, names = [0], [""]  # of the open collections, the document first
    anchored: dict[str, int] = {}
    for event in events:
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.CollectionStartEvent):
            if len(counts) > DEEPEST:
                raise Unreadable(f"{where}:{line}: it is nested deeper than {DEEPEST} levels")
            counts.append(1)
            names.append(event.anchor or "")
            anchored.pop(event.anchor or "", None)
        elif isinstance(event, yaml.CollectionEndEvent):
            count, name = counts.pop(), names.pop()
            if name:
                anchored[name] = count
            counts[-1] += count
        elif isinstance(event, yaml.ScalarEvent):
            if not event.style and len(event.value) > LONGEST_NUMBER and _NUMBER.match(event.value):
                raise Unreadable(f"{where}:{line}: a number of more than {LONGEST_NUMBER} characters")
            if event.anchor:
                anchored[event.anchor] = 1
            counts[-1] += 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in names:
                raise Unreadable(f"{where}:{line}: the alias *{event.anchor[:40]} stands within what it repeats")
            counts[-1] += anchored.get(event.anchor or "", 1)
        if sum(counts) > MOST_YAML_VALUES:
            raise Unreadable(
                f"{where}:{line}: it holds more than {MOST_YAML_VALUES:,} values, what its aliases repeat included"
            )


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:200]


def typed_values(text: str) -> Any:
    """YAML or JSON that a person typed as plain values: the value of a setting.

    Raises:
        ValueError: when it is neither, or asks for too much.
    """
    if len(text) > MOST_YAML_BYTES:
        raise ValueError(f"it has {len(text):,} characters")
    try:
        return parse_yaml(text, "the text").values
    except Unreadable as error:
        raise ValueError(str(error).partition(": ")[2] or str(error)) from error


def check_format(values: Any, known: int, where: str) -> None:
    """Refuse a file whose "format" is another version's, by its number; one without is left to its model.

    Raises:
        Unreadable: naming both numbers and what to do.
    """
    found = values.get("format", known) if isinstance(values, dict) else known
    if found == known and not isinstance(found, bool):
        return
    newer = isinstance(found, int | float) and found > known
    remedy = "upgrade distillkit" if newer else "make it anew, or install the distillkit that wrote it"
    writer = f", written by distillkit {short(values['distillkit'])}" if "distillkit" in values else ""
    raise Unreadable(f"{where} has format {short(found)}{writer}; this distillkit reads format {known}: {remedy}")
