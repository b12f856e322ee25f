"""Configurations as they were written and typed, and what is wrong with them: files, --set, places of bad values."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from distillkit.errors import UsageError
from distillkit.reading import Unreadable, read_yaml, typed_values
from distillkit.text import short

MOST_PROBLEMS = 20

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class ConfigFile:
    """A parsed YAML file that remembers in which line each key stands."""

    path: Path
    values: dict[str, Any]
    lines: Mapping[tuple[str, ...], int]


def read_config(path: Path) -> ConfigFile:
    """Parse a YAML configuration.

    Raises:
        UsageError: when it cannot be read, is not UTF-8, is not a mapping, or names a key twice; with the line.
    """
    try:
        read = read_yaml(path)
    except Unreadable as error:
        raise UsageError(str(error)) from error
    if not isinstance(read.root, yaml.MappingNode) or not isinstance(read.values, dict):
        raise UsageError(f"{path} holds no keys: a configuration is a mapping such as `training:`")
    lines = _lines(read.root, path)
    if strange := [key for key in read.values if not isinstance(key, str)]:
        raise UsageError(f"{path}: the key {short(strange[0])} is no text")
    return ConfigFile(path, read.values, lines)


def _lines(node: yaml.MappingNode, path: Path, above: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    lines: dict[tuple[str, ...], int] = {}
    for key, value in node.value:
        place = (*above, str(key.value))
        if place in lines:
            raise UsageError(f"{path}:{key.start_mark.line + 1}: the key {key.value!r} is given twice")
        lines[place] = key.start_mark.line + 1
        if isinstance(value, yaml.MappingNode):
            lines |= _lines(value, path, place)
    return lines


def validated(
    model: type[Model], values: Any, file: ConfigFile | None, typed: Mapping[str, Any], above: tuple[str, ...] = ()
) -> Model:
    """The values as a model.

    Raises:
        UsageError: naming the place of every bad value and the nearest valid key.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UsageError(explain(error, model, file, typed, above)) from error


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings laid over each other, the last on top."""
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
            out[key] = merge(out[key], value) if both else value
    return out


def explain(
    error: ValidationError,
    model: type[BaseModel],
    file: ConfigFile | None = None,
    typed: Mapping[str, Any] = MappingProxyType({}),
    above: tuple[str, ...] = (),
) -> str:
    """Validation errors as lines that say where, what, and what would be right."""
    lines = []
    for problem in error.errors():
        place = (*above, *(str(part) for part in problem["loc"]))
        setting = place[: next((k for k, part in enumerate(place) if part.isdigit()), len(place))]
        if setting and typed_in(typed, setting):
            from distillkit.runs.options import option_name

            where = option_name(setting)
        elif file and not place:
            where = f"{file.path}"
        elif file and (line := _line_of(file, place, problem["type"])):
            where = f"{file.path}:{line}: {'.'.join(place)}"
        else:
            where = ".".join(place)
        if problem["type"] == "extra_forbidden":
            if typed_in(typed, setting):
                # Options are made from the known keys, so an unknown one came by --set.
                where = f"--set {'.'.join(place)}"
            known = _fields_at(model, problem["loc"][:-1])
            deeper = [".".join(path) for path in _paths(model) if path[-1] == place[-1]] if place == setting[:1] else []
            near = deeper[:1] or difflib.get_close_matches(place[-1], known, n=1)
            what = "unknown key." + (f" Did you mean {near[0]!r}?" if near else "") + f" Known: {', '.join(known)}."
        else:
            what = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "value_error" and isinstance(problem["input"], Mapping):
                # Settings that contradict each other: the message names them, and no option is the whole of them.
                lines.append(f"{where}: {what}" if file and where.startswith(f"{file.path}") else what)
                continue
            what += f" (got {short(problem['input'])})"
        lines.append(f"{where}: {what}")
    if len(lines) > MOST_PROBLEMS:
        lines[MOST_PROBLEMS:] = [f"and {len(lines) - MOST_PROBLEMS:,} more"]
    return "\n".join(lines)


def _line_of(file: ConfigFile, place: tuple[str, ...], kind: str) -> int | None:
    """The line of a place in a file; of what is missing, the line of what it is missing in."""
    return file.lines.get(place) or (file.lines.get(place[:-1]) if kind == "missing" else None)


def typed_in(values: Mapping[str, Any], place: Sequence[str]) -> bool:
    for key in place:
        if not isinstance(values, Mapping) or key not in values:
            return False
        values = values[key]
    return True


def _fields_at(model: type[BaseModel], place: Sequence[Any]) -> list[str]:
    """The keys that are known at a place, through models and mappings of models."""
    found: Any = model
    for key in place:
        if get_origin(found) is dict:
            found = get_args(found)[1]
        elif isinstance(found, type) and issubclass(found, BaseModel):
            found = found.model_fields[str(key)].annotation
        else:
            return []
    return sorted(found.model_fields) if isinstance(found, type) and issubclass(found, BaseModel) else []


def _paths(model: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    """All keys of nested models."""
    for name, info in model.model_fields.items():
        yield (name,)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from ((name, *path) for path in _paths(info.annotation))


def set_values(assignments: Sequence[str]) -> dict[str, Any]:
    """["training.lr=1e-4"] -> {"training": {"lr": 0.0001}}; values are read as YAML.

    Raises:
        UsageError: for an assignment without a key or "=".
    """
    out: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise UsageError(f"--set {assignment}: write it as KEY=VALUE, such as training.lr=1e-4")
        try:
            value = typed_values(text)
        except ValueError as error:
            raise UsageError(f"--set {assignment}: the value cannot be read: {error}") from error
        nested: dict[str, Any] = {key.split(".")[-1]: value}
        for part in reversed(key.split(".")[:-1]):
            nested = {part: nested}
        out = merge(out, nested)
    return out
