"""Command-line options made from pydantic models: typed, with help, bounds and defaults from the fields."""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import annotated_types
import typer
from pydantic.fields import FieldInfo

from distillkit.counts import READERS, parse_count
from distillkit.runs.options import Section


def parameters(sections: Iterable[Section]) -> list[inspect.Parameter]:
    """A keyword parameter per field, named as in Python's `distil`; what the user does not type is None."""
    out = []
    for section in sections:
        for name, info in section.model.model_fields.items():
            kind, flag = _kind(info), section.flag(name)
            default = info.get_default(call_default_factory=True)
            shown = f"default: {_show(default)}"
            if name in section.preset and parse_count(section.preset[name]) != default:
                shown = f"{section.preset_name}: {_show(section.preset[name])}; {shown}"
            declared = f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}"
            text = _help(info, shown).replace("\\[", "[")
            option = typer.Option(declared, help=text, rich_help_panel=section.title, show_default=False)
            out.append(
                inspect.Parameter(
                    flag.replace("-", "_"),
                    inspect.Parameter.KEYWORD_ONLY,
                    default=None,
                    annotation=typing.Annotated[kind | None, option],
                )
            )
    return out


def typed_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the user typed, by keyword."""
    return {
        name: value.value if isinstance(value, enum.Enum) else value
        for name, value in values.items()
        if value is not None
    }


def _kind(field: FieldInfo) -> Any:
    """The type that the command line parses: counts and the like are text, which pydantic then reads."""
    annotation = field.annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    while typing.get_origin(annotation) is typing.Annotated:
        if any(getattr(extra, "func", None) in READERS for extra in typing.get_args(annotation)[1:]):
            return str
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is typing.Literal:
        return enum.Enum("Choice", {str(value): str(value) for value in typing.get_args(annotation)})
    if any(getattr(extra, "func", None) in READERS for extra in field.metadata):
        return str
    return annotation if annotation in (bool, int, float) else str


def _help(field: FieldInfo, shown: str) -> str:
    symbols = {annotated_types.Ge: ">=", annotated_types.Gt: ">", annotated_types.Le: "<=", annotated_types.Lt: "<"}
    bounds = [
        f"{symbol} {getattr(extra, kind.__name__.lower())}"
        for kind, symbol in symbols.items()
        for extra in field.metadata
        if isinstance(extra, kind)
    ]
    text = (field.description or "").strip()
    return f"{text[:1].upper()}{text[1:]}  \\[{', '.join([shown, *bounds])}]"


def _show(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000 and value % 1000 == 0:
        return f"{value / 1e6:g}M" if value >= 1_000_000 else f"{value // 1000}k"
    if isinstance(value, tuple | list):
        return ",".join(map(_show, value)) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value).lower()


def describe(section: Section) -> list[tuple[str, str, str, str]]:
    """Rows (setting, value in force, default, meaning with bounds) for people."""
    rows = []
    for name, info in section.model.model_fields.items():
        default = info.get_default(call_default_factory=True)
        value = parse_count(section.preset.get(name, default))
        rows.append(
            (
                ".".join((*section.place, name)),
                _show(value),
                _show(default),
                _help(info, "").replace("\\[", "[").replace("[, ", "[").removesuffix("  []"),
            )
        )
    return rows
