"""From descriptions, which are plain data, to networks, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distillkit.contracts.codec import Codec
from distillkit.contracts.conditioner import Conditioner
from distillkit.contracts.denoiser import Denoiser
from distillkit.errors import DistillkitError, UsageError
from distillkit.registry import BUILT_IN, blaming, registry


def build_denoiser(description: Mapping[str, Any]) -> Denoiser:
    """A denoiser with fresh weights.

    Args:
        description: {"kind": "package:Name", "arguments": {...}}; the arguments are plain values.

    Raises:
        UsageError: for a kind whose package is not installed; names it.
        DistillkitError: for arguments that do not fit.
    """
    kind = str(description.get("kind", ""))
    offered = registry().by_kind("networks", kind)
    arguments = dict(description.get("arguments", {}))
    with blaming(f"the network {kind}", offered.origin, "cannot be built from its arguments"):
        denoiser = offered.value(**arguments)
    if not isinstance(denoiser, Denoiser):
        raise DistillkitError(f"the network {kind} ({offered.origin}) is a {type(denoiser).__name__}, not a Denoiser")
    denoiser.description = {"kind": offered.kind, "arguments": arguments}
    return denoiser


def changed_network(description: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A network's description with other arguments: the way to a smaller student.

    Args:
        changes: argument -> value; an argument of the inner network ("model_channels") is found in nested mappings.

    Raises:
        UsageError: for an argument that the description does not have; names those it has.
    """
    arguments = _with_changes(description.get("arguments", {}), changes)
    if left := changes.keys() - set(_names(arguments)):
        known = ", ".join(sorted(set(_names(description.get("arguments", {})))))
        raise UsageError(f"{description.get('kind')} has no argument {sorted(left)[0]!r}; it has {known}")
    return {**description, "arguments": arguments}


def _with_changes(arguments: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: changes[key] if key in changes else _with_changes(value, changes) if isinstance(value, Mapping) else value
        for key, value in arguments.items()
    }


def _names(arguments: Mapping[str, Any]) -> list[str]:
    inner = [name for value in arguments.values() if isinstance(value, Mapping) for name in _names(value)]
    return [*arguments, *inner]


def own_part(part: Conditioner | Codec) -> dict[str, Any]:
    """The description of one of distillkit's own conditioners and codecs, as `Registry.describe` makes it.

    For descriptions that are written while plugins are being loaded, when there is no registry to ask yet.
    """
    return {"kind": f"{BUILT_IN}:{type(part).__name__}", **part.model_dump(mode="json")}
