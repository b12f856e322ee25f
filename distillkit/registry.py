"""Which methods are installed: the entry points of the group `distillkit`.

They are loaded one by one, so that a broken plugin is named and the rest goes on.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from distillkit.contracts import hooks
from distillkit.contracts.method import Method
from distillkit.errors import UsageError


@dataclass(frozen=True)
class InstalledMethod:
    """A method class and the distribution that brought it."""

    method: type[Method]
    package: str
    version: str


@dataclass(frozen=True)
class InstalledExtractor:
    """How a plugin makes a feature extractor."""

    make: Callable[[], Any]
    package: str
    version: str


@dataclass(frozen=True)
class BrokenPlugin:
    """An entry point that could not be loaded or whose hook failed, and why."""

    name: str
    package: str
    version: str
    reason: str


@dataclass
class Registry:
    methods: dict[str, InstalledMethod] = field(default_factory=dict)
    extractors: dict[str, InstalledExtractor] = field(default_factory=dict)
    broken: list[BrokenPlugin] = field(default_factory=list)

    def method(self, name: str) -> type[Method]:
        """The method of that name.

        Raises:
            UsageError: for an unknown name, with the nearest known ones, or one that a broken plugin offers.
        """
        if name in self.methods:
            return self.methods[name].method
        for plugin in self.broken:
            if name in (plugin.name, plugin.package):
                raise UsageError(f"method {name!r}: its plugin {plugin.package} is broken: {plugin.reason}")
        broken = "".join(f" Broken plugin: {p.package} ({p.reason})." for p in self.broken)
        raise UsageError(unknown("method", name, self.methods, "distillkit methods") + broken)


def unknown(kind: str, name: str, known: object, command: str) -> str:
    """The message for a name that is not known: the nearest ones first, and the command that lists all."""
    names = sorted(map(str, known))  # type: ignore[call-overload]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Available: {', '.join(names) or 'none'} (see `{command}`)."


@cache
def registry() -> Registry:
    """Load every installed plugin once."""
    found = Registry()
    for entry in sorted(entry_points(group=hooks.GROUP), key=lambda e: (e.name, e.value)):
        package, version = _origin(entry)
        try:
            manager = pluggy.PluginManager(hooks.GROUP)
            manager.add_hookspecs(hooks)
            manager.register(entry.load(), name=entry.name)
            manager.check_pending()
            offered = [method for methods in manager.hook.distillkit_methods() for method in methods]
            extractors = {name: make for named in manager.hook.distillkit_extractors() for name, make in named.items()}
            for method in offered:
                if not (isinstance(method, type) and issubclass(method, Method) and isinstance(method.name, str)):
                    raise TypeError(f"distillkit_methods offers {method!r}, which is not a named Method class")
        except Exception as error:  # a plugin may fail in any way; it is named and the rest goes on
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            found.broken.append(BrokenPlugin(entry.name, package, version, reason))
            continue
        for name, make in extractors.items():
            if name in found.extractors:
                reason = f"its extractor {name!r} is already offered by {found.extractors[name].package}"
                found.broken.append(BrokenPlugin(entry.name, package, version, reason))
            else:
                found.extractors[name] = InstalledExtractor(make, package, version)
        for method in offered:
            if rival := found.methods.get(method.name):
                reason = f"its method {method.name!r} is already offered by {rival.package}; uninstall one of the two"
                found.broken.append(BrokenPlugin(entry.name, package, version, reason))
            else:
                found.methods[method.name] = InstalledMethod(method, package, version)
    return found


def _origin(entry: EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist else (entry.value, "unknown")
