"""Hook specifications: what a plugin package may implement.

A package becomes a plugin by an entry point in the group `distillkit` that names a module with functions
marked by `hookimpl`:

    [project.entry-points.distillkit]
    kd = "my_package"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from distillkit.contracts.method import Method

FeatureExtractor = Any
"""`distillkit.FeatureExtractor`, which lives above the contracts."""

GROUP = "distillkit"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def distillkit_methods() -> Sequence[type[Method]]:  # type: ignore[empty-body]
    """The method classes that this plugin offers."""


@hookspec
def distillkit_extractors() -> Mapping[str, Callable[[], FeatureExtractor]]:  # type: ignore[empty-body]
    """Feature extractors for evaluation by name; made when they are asked for."""
