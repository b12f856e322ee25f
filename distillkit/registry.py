"""What is installed: the entry points of the group `distillkit`.

They are loaded one by one, so that a broken plugin is named and the rest goes on.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from distillkit.contracts import hooks
from distillkit.contracts.method import Method, MethodConfig
from distillkit.errors import DistillkitError, UsageError

KINDS = ("methods", "teachers", "extractors", "protocols", "trackers", "exporters")
"""What plugins offer; each is a hook `distillkit_KIND`."""


@dataclass(frozen=True)
class Plugin:
    """An entry point, the distribution that brought it, and what it offers by kind; or why it cannot be used."""

    name: str
    package: str
    version: str
    module: str
    offers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reason: str = ""

    @property
    def origin(self) -> str:
        return f"{self.package} {self.version}"


@dataclass(frozen=True)
class Installed:
    """One thing that a plugin offers, and where it comes from."""

    value: Any
    package: str
    version: str

    @property
    def origin(self) -> str:
        return f"{self.package} {self.version}"


@dataclass
class Registry:
    """Everything that can be used, by kind and name, and everything that cannot, with the reason.

    Attributes:
        refused: kind and name -> why nobody gets this name.
    """

    plugins: list[Plugin] = field(default_factory=list)
    methods: dict[str, Installed] = field(default_factory=dict)
    teachers: dict[str, Installed] = field(default_factory=dict)
    extractors: dict[str, Installed] = field(default_factory=dict)
    protocols: dict[str, Installed] = field(default_factory=dict)
    trackers: dict[str, Installed] = field(default_factory=dict)
    exporters: dict[str, Installed] = field(default_factory=dict)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def broken(self) -> list[Plugin]:
        return [plugin for plugin in self.plugins if plugin.reason]

    def method(self, name: str) -> type[Method]:
        """The method of that name.

        Raises:
            UsageError: for an unknown name, with the nearest known ones, one that two plugins offer, or one that a
                broken plugin would.
        """
        if name in self.methods:
            method: type[Method] = self.methods[name].value
            return method
        if reason := self.refused.get(("methods", name)):
            raise UsageError(reason)
        for plugin in self.broken:
            if name in (plugin.name, plugin.package):
                raise UsageError(f"method {name!r}: its plugin {plugin.package} is broken: {plugin.reason}")
        broken = "".join(f" Broken plugin: {p.package} ({p.reason})." for p in self.broken)
        raise UsageError(unknown("method", name, self.methods, "distillkit methods") + broken)


@contextmanager
def blaming(what: str, origin: str, trouble: str) -> Iterator[None]:
    """Name the package on whatever fails inside, for a plugin may fail in any way; clear messages pass as they are.

    Raises:
        DistillkitError: "WHAT (ORIGIN) TROUBLE: the error".
    """
    try:
        yield
    except DistillkitError:
        raise
    except Exception as error:
        raise DistillkitError(f"{what} ({origin}) {trouble}: {type(error).__name__}: {error}") from error


def unknown(kind: str, name: str, known: object, command: str) -> str:
    """The message for a name that is not known: the nearest ones first, and the command that lists all."""
    names = sorted(map(str, known))  # type: ignore[call-overload]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Available: {', '.join(names) or 'none'} (see `{command}`)."


@cache
def registry() -> Registry:
    """Load every installed plugin once."""
    return gathered(_loaded(entry) for entry in entry_points(group=hooks.GROUP))


def gathered(plugins: Iterable[Plugin]) -> Registry:
    """All offers by kind and name. A name that several plugins offer is refused for all of them, in whatever order."""
    found = Registry(sorted(plugins, key=lambda plugin: (plugin.name, plugin.package)))
    for kind in KINDS:
        offered: dict[str, list[Plugin]] = {}
        for plugin in found.plugins:
            for name in plugin.offers.get(kind, {}):
                offered.setdefault(name, []).append(plugin)
        for name, rivals in offered.items():
            if len(rivals) > 1:
                packages = " and ".join(f"{plugin.origin} (plugin {plugin.name})" for plugin in rivals)
                found.refused[kind, name] = f"the {kind[:-1]} {name!r} is offered by {packages}: uninstall all but one"
                continue
            [plugin] = rivals
            getattr(found, kind)[name] = Installed(plugin.offers[kind][name], plugin.package, plugin.version)
    return found


def _loaded(entry: EntryPoint) -> Plugin:
    """The plugin of an entry point; one that fails in any way is a plugin with a reason."""
    package, version = (entry.dist.name, entry.dist.version) if entry.dist else (entry.value, "unknown")
    try:
        module = entry.load()
        if (wanted := getattr(module, "DISTILLKIT_API", hooks.API_VERSION)) != hooks.API_VERSION:
            older = isinstance(wanted, int) and wanted < hooks.API_VERSION
            raise RuntimeError(
                f"it was written for version {wanted} of the plugin interface and this distillkit has version "
                f"{hooks.API_VERSION}: upgrade {package if older else 'distillkit'}"
            )
        offers = _offers(entry.name, module)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return Plugin(entry.name, package, version, entry.value, reason=reason)
    return Plugin(entry.name, package, version, entry.value, offers)


def _offers(name: str, module: Any) -> dict[str, dict[str, Any]]:
    """What a plugin's hooks return, by kind and name.

    Raises:
        TypeError: when it is not what the hook is for.
    """
    manager = pluggy.PluginManager(hooks.GROUP)
    manager.add_hookspecs(hooks)
    manager.register(module, name=name)
    manager.check_pending()
    offers: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    for method in (method for methods in manager.hook.distillkit_methods() for method in methods):
        if not (isinstance(method, type) and issubclass(method, Method) and isinstance(method.name, str)):
            raise TypeError(f"distillkit_methods offers {method!r}, which is not a named Method class")
        if not (isinstance(method.Config, type) and issubclass(method.Config, MethodConfig)):
            raise TypeError(f"the Config of the method {method.name!r} is not a MethodConfig")
        offers["methods"][method.name] = method
    for kind in KINDS[1:]:
        for named in getattr(manager.hook, f"distillkit_{kind}")():
            for key, value in named.items():
                if not (isinstance(value, Mapping) if kind == "protocols" else callable(value)):
                    raise TypeError(f"distillkit_{kind} offers {key!r} as {type(value).__name__}")
                offers[kind][key] = value
    return offers
