"""Which methods a name stands for."""

from __future__ import annotations

from distillkit.contracts.method import Method
from distillkit.errors import UsageError
from distillkit.registry import Plugin, load_file, registry, unknown


def methods_of(name: str) -> list[type[Method]]:
    """The methods of an installed package (as pip or as Python call it), of a plugin, of a Python file, or one method.

    Raises:
        UsageError: for a name that is none of these, and for a plugin that is broken or offers no method.
    """
    if name.endswith(".py"):
        return _methods(load_file(name), name)
    found = registry()
    methods = found.named("methods")
    if name in methods:
        return [found.method(name)]
    spelling = name.lower().replace("_", "-")
    plugins = [
        plugin
        for plugin in found.plugins
        if spelling in {alias.lower().replace("_", "-") for alias in (plugin.name, plugin.package, plugin.module)}
    ]
    if not plugins:
        known = {alias for plugin in found.plugins for alias in (plugin.name, plugin.package)} | set(methods)
        raise UsageError(unknown("package or method", name, known, "distillkit plugins"))
    if broken := [plugin for plugin in plugins if plugin.reason]:
        raise UsageError(f"the plugin {broken[0].name} ({broken[0].origin}) is broken: {broken[0].reason}")
    return [
        method for plugin in plugins if plugin.offers.get("methods") for method in _methods(plugin, name)
    ] or _methods(plugins[0], name)


def _methods(plugin: Plugin, name: str) -> list[type[Method]]:
    if not (methods := list(plugin.offers.get("methods", {}).values())):
        raise UsageError(f"{name} offers no method; only methods are checked")
    return methods
