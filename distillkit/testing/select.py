"""Which methods a name stands for."""

from __future__ import annotations

from distillkit.contracts.method import Method
from distillkit.errors import UsageError
from distillkit.registry import registry, unknown


def methods_of(name: str) -> list[type[Method]]:
    """The methods of an installed package (as pip or as Python call it), of a plugin, or one method.

    Raises:
        UsageError: for a name that is none of these, and for a plugin that is broken or offers no method.
    """
    found = registry()
    if name in found.methods:
        return [found.method(name)]
    spelling = name.lower().replace("_", "-")
    plugins = [
        plugin
        for plugin in found.plugins
        if spelling in {alias.lower().replace("_", "-") for alias in (plugin.name, plugin.package, plugin.module)}
    ]
    if not plugins:
        known = {alias for plugin in found.plugins for alias in (plugin.name, plugin.package)} | set(found.methods)
        raise UsageError(unknown("package or method", name, known, "distillkit plugins"))
    if broken := [plugin for plugin in plugins if plugin.reason]:
        raise UsageError(f"the plugin {broken[0].name} ({broken[0].origin}) is broken: {broken[0].reason}")
    methods = [method for plugin in plugins for method in plugin.offers.get("methods", {}).values()]
    if not methods:
        raise UsageError(f"{name} offers no method; only methods are checked")
    return methods
