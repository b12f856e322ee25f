"""What is installed: the entry points of the group `distillkit`, and single files that were named.

They are loaded one by one, so that a broken plugin is named and the rest goes on.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pluggy
from pydantic import BaseModel, ValidationError

from distillkit.contracts import hooks
from distillkit.contracts.codec import Codec
from distillkit.contracts.conditioner import Conditioner
from distillkit.contracts.method import Method, MethodConfig
from distillkit.contracts.sampler import Sampler
from distillkit.contracts.source import Source, SourceConfig
from distillkit.contracts.text import TextEncoder
from distillkit.errors import DistillkitError, UsageError
from distillkit.reading import first_problem
from distillkit.text import short

_KIND = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}:[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
"""`package:Name`. What is read from a file ends up in a message that tells people what to install."""

BUILT_IN = "distillkit"
"""The distribution whose names nobody can take."""

KINDS = (
    "methods", "teachers", "families", "networks", "samplers", "conditioners", "encoders", "codecs", "sources",
    "extractors", "protocols", "trackers", "exporters",
)  # fmt: skip
"""What plugins offer; each is a hook `distillkit_KIND`."""

PARTS: Mapping[str, type[BaseModel]] = {
    "samplers": Sampler, "conditioners": Conditioner, "encoders": TextEncoder, "codecs": Codec,
}  # fmt: skip
"""Kinds that are classes of plain data, which files describe."""


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
        return f"{self.package} {self.version}".strip()


@dataclass(frozen=True)
class Installed:
    """One thing that a plugin offers, and where it comes from."""

    value: Any
    name: str
    package: str
    version: str

    @property
    def origin(self) -> str:
        return f"{self.package} {self.version}".strip()

    @property
    def kind(self) -> str:
        """How files name it: `package:Name`."""
        return f"{self.package}:{self.name}"


@dataclass
class Registry:
    """Everything that can be used, by kind and name, and everything that cannot, with the reason.

    Attributes:
        refused: kind and name -> who does not get this name, and why.
    """

    plugins: list[Plugin] = field(default_factory=list)
    offers: dict[str, dict[str, Installed]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    refused: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def broken(self) -> list[Plugin]:
        return [plugin for plugin in self.plugins if plugin.reason]

    def named(self, kind: str) -> Mapping[str, Installed]:
        """What there is of a kind, such as "methods", by name."""
        return self.offers[kind]

    def find(self, kind: str, name: str, command: str = "distillkit plugins") -> Installed:
        """The offer of that name.

        Args:
            command: the one that lists what there is.

        Raises:
            UsageError: for an unknown name, with the nearest known ones; one that two plugins offer, or one that a
                broken plugin would.
        """
        if name in self.offers[kind]:
            return self.offers[kind][name]
        if reason := self.refused.get((kind, name)):
            raise UsageError(reason)
        for plugin in self.broken:
            if name in (plugin.name, plugin.package):
                raise UsageError(f"{kind[:-1]} {name!r}: its plugin {plugin.package} is broken: {plugin.reason}")
        broken = "".join(f" Broken plugin: {p.package} ({p.reason})." for p in self.broken)
        raise UsageError(unknown(kind[:-1], name, self.offers[kind], command) + broken)

    def method(self, name: str) -> type[Method]:
        """The method of that name, or of a Python file that is named.

        Raises:
            UsageError: as `find`, or where the file offers no method or several.
        """
        known = method_name(name)  # may load a file, after which there is another registry
        method: type[Method] = registry().find("methods", known, "distillkit methods").value
        return method

    def sources(self) -> dict[type, type[Source[Any]]]:
        """The sources by the type of their batches."""
        return {offer.value.batch_type: offer.value for offer in self.named("sources").values()}

    def by_kind(self, kind: str, described: str) -> Installed:
        """The offer that a file calls `package:Name`.

        Raises:
            UsageError: when its package is not installed, or no longer offers it; says what to install.
        """
        package, _, name = described.rpartition(":")
        if (found := self.offers[kind].get(name)) and found.package == package:
            return found
        what = f"the {kind[:-1]} {short(described)}"
        if not _KIND.fullmatch(described):
            known = ", ".join(sorted(offer.kind for offer in self.offers[kind].values()))
            raise UsageError(f"{what} is not of the form package:Name; known: {known}")
        if broken := [plugin for plugin in self.broken if plugin.package == package]:
            raise UsageError(f"{what}: its package {package} is broken: {broken[0].reason}")
        if package.endswith(".py"):
            raise UsageError(f"{what} comes from a file; name it: distillkit --plugin PATH/TO/{package} ...")
        if any(plugin.package == package for plugin in self.plugins):
            reason = self.refused.get((kind, name), f"the installed version of {package} does not offer it")
            raise UsageError(f"{what}: {reason}")
        raise UsageError(
            f"{what} comes from the package {package!r}, which is not installed: if you trust it, pip install {package}"
        )

    def describe(self, kind: str, part: Any) -> dict[str, Any]:
        """{"kind": "package:Name", ...fields} of a sampler, conditioner or codec; {} where its class is not offered."""
        for offer in self.offers[kind].values():
            if offer.value is type(part):
                return {"kind": offer.kind, **part.model_dump(mode="json")}
        return {}

    def build(self, kind: str, description: Mapping[str, Any]) -> Any:
        """The inverse of `describe`.

        Raises:
            UsageError: when its package is not installed.
            DistillkitError: for fields that do not fit.
        """
        if not isinstance(described := description.get("kind", ""), str):
            raise DistillkitError(f"the {kind[:-1]} is called {short(described)}, and package:Name is due")
        fields = {key: value for key, value in description.items() if key != "kind"}
        offer = self.by_kind(kind, described)
        try:
            return offer.value.model_validate(fields)
        except ValidationError as error:
            raise DistillkitError(f"the {kind[:-1]} {offer.kind}: {first_problem(error)}") from error
        except DistillkitError:  # of a part of the part, whose package may be missing
            raise
        except Exception as error:  # a plugin's own checks may fail in any way
            raise DistillkitError(f"the {kind[:-1]} {offer.kind} cannot be made: {_said(error)}") from error


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
        raise DistillkitError(f"{what} ({origin}) {trouble}: {_said(error)}") from error


def _said(error: Exception) -> str:
    """What an error says, with its kind; of a validation its first field alone."""
    if isinstance(error, ValidationError):
        return first_problem(error)
    return f"{type(error).__name__}: {str(error)[:2000]}"


def unknown(
    kind: str, name: str, known: Iterable[object], command: str, understood: Iterable[object] | None = None
) -> str:
    """The message for a name that is not known: the nearest one first, and the command that lists all.

    Args:
        known: names that are listed.
        understood: names among which the nearest one is; those that are listed by default.
    """
    names = sorted(map(str, known))
    near = difflib.get_close_matches(name, names if understood is None else map(str, understood), n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Available: {', '.join(names) or 'none'} (see `{command}`)."


_FILES: list[Plugin] = []
"""Plugins that are single files, in the order in which they were named."""


@cache
def registry() -> Registry:
    """Load every installed plugin once."""
    return gathered([*(_loaded(entry) for entry in entry_points(group=hooks.GROUP)), *_FILES])


def load_file(path: str | Path) -> Plugin:
    """Take a Python file as a plugin: its hooks, or where it has none, the `Method` classes that it defines.

    It is executed, as an installed plugin is. Kinds of what it offers are written as `FILE.py:Name`.

    Raises:
        UsageError: when there is no such file.
        DistillkitError: when it fails.
    """
    place = Path(path).expanduser().resolve()
    if not place.is_file():
        raise UsageError(f"{path}: no such file")
    for known in _FILES:
        if known.module == str(place):
            return known
    name = f"distillkit_file_{place.stem}"
    found = importlib.util.spec_from_file_location(name, place)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    with blaming(str(path), "a plugin file", "cannot be loaded"):
        found.loader.exec_module(module)
        offers = _offers(place.stem, module)
        if not any(offers.values()):
            own = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Method)]
            offers["methods"] = {m.name: m for m in own if m.__module__ == name and hasattr(m, "name")}
    if not any(offers.values()):
        raise UsageError(f"{path} offers nothing: it needs a class that inherits from distillkit.Method, or hooks")
    plugin = Plugin(place.stem, place.name, "", str(place), offers)
    _FILES.append(plugin)
    registry.cache_clear()
    return plugin


def plugin_files() -> tuple[str, ...]:
    """The Python files that were taken as plugins, for other processes to take them too."""
    return tuple(plugin.module for plugin in _FILES if plugin.package != "__main__")


def offer(**kinds: Mapping[str, Any]) -> None:
    """Offer parts for this process, as a plugin does by its hooks: `offer(samplers={"TwoJump": TwoJump})`.

    For notebooks and scripts; what is saved names them as `__main__:Name`, and is loaded where they are offered again.

    Raises:
        UsageError: for an unknown kind, or a value that is not what the kind is for.
    """
    for kind, named in kinds.items():
        if kind not in KINDS:
            raise UsageError(unknown("kind of offer", kind, KINDS, "distillkit plugins"))
        if strange := [name for name, value in named.items() if not _fits(kind, value)]:
            raise UsageError(f"{strange[0]!r} is not what {kind} are: {named[strange[0]]!r}")
    known = [plugin for plugin in _FILES if plugin.package == "__main__"]
    before = known[0].offers if known else {}
    _FILES[:] = [plugin for plugin in _FILES if plugin.package != "__main__"]
    both = {kind: {**before.get(kind, {}), **kinds.get(kind, {})} for kind in KINDS}
    _FILES.append(Plugin("this process", "__main__", "", "__main__", both))
    registry.cache_clear()


def method_name(name: str) -> str:
    """The name of a method, where `name` may also be a Python file that offers one; the file is loaded.

    Raises:
        UsageError: when the file offers no method, or several, or one whose name it does not get.
    """
    if not name.endswith(".py"):
        return name
    plugin = load_file(name)
    methods = list(plugin.offers.get("methods", {}))
    if len(methods) != 1:
        raise UsageError(f"{name} offers {len(methods)} methods ({', '.join(methods) or 'none'}), and one is needed")
    found = registry().named("methods").get(methods[0])
    if found is None or found.package != plugin.package:
        raise UsageError(registry().refused["methods", methods[0]])
    return methods[0]


def gathered(plugins: Iterable[Plugin]) -> Registry:
    """All offers by kind and name, in whatever order plugins come.

    A name of distillkit's own stays its own; one that several others offer is given to none of them.
    """
    found = Registry(sorted(plugins, key=lambda plugin: (plugin.name, plugin.package)))
    for kind in KINDS:
        offered: dict[str, list[Plugin]] = {}
        for plugin in found.plugins:
            for name in plugin.offers.get(kind, {}):
                offered.setdefault(name, []).append(plugin)
        for name, rivals in offered.items():
            own = [plugin for plugin in rivals if plugin.package == BUILT_IN]
            others = [plugin for plugin in rivals if plugin.package != BUILT_IN]
            if others and (own or len(others) > 1):
                names = " and ".join(f"{plugin.origin} (plugin {plugin.name})" for plugin in others)
                why = "is distillkit's own" if own else "is offered by each of them"
                remedy = "it needs another name" if own else "uninstall all but one"
                found.refused[kind, name] = f"the {kind[:-1]} {name!r} of {names} is refused: the name {why}; {remedy}"
            winner = own or others
            if own or len(others) == 1:
                chosen = winner[0]
                value = chosen.offers[kind][name]
                found.offers[kind][name] = Installed(value, name, chosen.package, chosen.version)
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
                if not _fits(kind, value):
                    raise TypeError(f"distillkit_{kind} offers {key!r} as {value!r}, which is not what it is for")
                offers[kind][key] = value
    return offers


def _fits(kind: str, value: Any) -> bool:
    if kind in PARTS:
        return isinstance(value, type) and issubclass(value, PARTS[kind])
    if kind == "sources":
        return isinstance(value, type) and issubclass(value, Source) and issubclass(value.Config, SourceConfig)
    return callable(value) or (kind == "protocols" and isinstance(value, Mapping))
