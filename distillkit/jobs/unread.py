"""Settings of a method that its recipe does not read: they change nothing, and whoever gave one is told."""

from __future__ import annotations

import json
import types
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from distillkit.contracts.method import Method, MethodConfig, Preset
from distillkit.runs.options import sections_of

Made = TypeVar("Made")

WHOLE = frozenset({"__dict__", "__pydantic_serializer__"})
"""What is read of a configuration that is written or copied as a whole."""


class Reads:
    """The fields of a configuration that are read while something is made of it."""

    def __init__(self) -> None:
        self.fields: frozenset[str] = frozenset()
        self._read: set[str] = set()

    @property
    def unread(self) -> list[str]:
        """Fields that nothing was made of, in their order by name."""
        return sorted(self.fields - self._read)

    def watching(self, make: Callable[[MethodConfig], Made], config: MethodConfig) -> Made:
        """What `make` makes of the configuration. Fields count as read where they may have been before, by a
        configuration with private attributes, or may be later, by something that keeps the configuration."""
        self.fields = frozenset(type(config).model_fields)
        watched = config.model_copy()
        object.__setattr__(watched, "__class__", _noting(type(config), self._read))
        kept = weakref.ref(watched)
        made = make(watched)
        del watched
        if kept() is not None or type(config).__private_attributes__:
            self._read.update(self.fields)
        return made


def _noting(kind: type[MethodConfig], read: set[str]) -> type[MethodConfig]:
    """The kind of configuration, under its own name, with a note of each field that is read."""

    def get(self: Any, name: str) -> Any:
        if name in kind.model_fields:
            read.add(name)
        elif name in WHOLE:
            read.update(kind.model_fields)
        return kind.__getattribute__(self, name)

    own = {"__getattribute__": get, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return types.new_class(kind.__name__, (kind,), exec_body=lambda body: body.update(own))


def without_effect(reads: Reads, method: type[Method], settings: dict[str, Any], preset: Preset | None) -> str:
    """A line on what was given beside the preset and not read; "" where there is nothing of that kind."""
    usual = {name: field.get_default(call_default_factory=True) for name, field in method.Config.model_fields.items()}
    usual |= dict(preset.settings) if preset else {}
    given = [name for name in reads.unread if _plain(settings[name]) != _plain(usual[name])]
    if not given:
        return ""
    own = sections_of(method)[0]
    options = ", ".join(f"--{own.flag(name)}" for name in given)
    has, them = ("has", "it") if len(given) == 1 else ("have", "them")
    return f"warning: {options} {has} no effect: {method.name} with these settings makes no use of {them}"


def _plain(value: Any) -> Any:
    """As a configuration's file has it."""
    return json.loads(json.dumps(value, default=str))
