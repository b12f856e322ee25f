"""Command-line options made from pydantic models: typed, with help, bounds and defaults from the fields."""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import annotated_types
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from distillkit.counts import parse_count


@dataclass(frozen=True)
class Section:
    """A model whose fields become options.

    Args:
        key: where its values go in the configuration.
        title: panel in the help.
        prefix: put before every option name, such as "pairs-".
        preset: values that a preset suggests instead of the defaults.
        preset_name: its name, for the help.
    """

    key: str
    model: type[BaseModel]
    title: str
    prefix: str = ""
    preset: Mapping[str, Any] = field(default_factory=dict)
    preset_name: str = ""


def parameters(sections: Iterable[Section]) -> list[inspect.Parameter]:
    """A keyword parameter per field; what the user does not type is None."""
    out = []
    for section in sections:
        for name, info in section.model.model_fields.items():
            kind = _kind(info)
            # A section's path is what the section is: --data rather than --data-path.
            flag = f"--{section.prefix}{name.replace('_', '-')}".removesuffix("-path")
            default = info.get_default(call_default_factory=True)
            shown = f"default: {_show(default)}"
            if name in section.preset and parse_count(section.preset[name]) != default:
                shown = f"{section.preset_name}: {_show(section.preset[name])}; {shown}"
            declared = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
            option = typer.Option(declared, help=_help(info, shown), rich_help_panel=section.title, show_default=False)
            out.append(
                inspect.Parameter(
                    f"{section.key}__{name}",
                    inspect.Parameter.KEYWORD_ONLY,
                    default=None,
                    annotation=typing.Annotated[kind | None, option],
                )
            )
    return out


def typed_values(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the user typed, nested like the configuration; `values` are keyed `section__field`."""
    out: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, separator, name = key.partition("__")
        if separator and value is not None:
            out.setdefault(section, {})[name] = value.value if isinstance(value, enum.Enum) else value
    return out


def _kind(field: FieldInfo) -> Any:
    """The type that the command line parses: counts and the like are text, which pydantic then reads."""
    annotation = field.annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    if typing.get_origin(annotation) is typing.Literal:
        return enum.Enum("Choice", {str(value): str(value) for value in typing.get_args(annotation)})
    if any(getattr(extra, "func", None) is parse_count for extra in field.metadata):
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
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value).lower()


def describe(section: Section) -> list[tuple[str, str, str, str]]:
    """Rows (setting, value in force, default, meaning with bounds) for people."""
    rows = []
    for name, info in section.model.model_fields.items():
        default = info.get_default(call_default_factory=True)
        value = parse_count(section.preset.get(name, default))
        rows.append(
            (
                f"{section.key}.{name}",
                _show(value),
                _show(default),
                _help(info, "").replace("\\[, ", "\\[").removesuffix("  \\[]"),
            )
        )
    return rows
