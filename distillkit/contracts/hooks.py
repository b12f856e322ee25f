"""Hook specifications: what a plugin package may implement.

A package becomes a plugin by an entry point in the group `distillkit` that names a module with functions
marked by `hookimpl`:

    [project.entry-points.distillkit]
    kd = "my_package"
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from distillkit.contracts.method import Method

GROUP = "distillkit"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def distillkit_methods() -> Sequence[type[Method]]:  # type: ignore[empty-body]
    """The method classes that this plugin offers."""
