"""The embedded mixture: a teacher whose distribution is known, and the protocol that measures it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from distillkit.contracts.hooks import Measure, hookimpl
from distillkit.contracts.teacher import Teacher


@hookimpl
def distillkit_teachers() -> Mapping[str, Callable[[], Teacher]]:
    from distillkit.embedded.mixture.teacher import offer

    return {"mixture": offer()}


@hookimpl
def distillkit_protocols() -> Mapping[str, Mapping[str, Any] | Callable[[], Measure]]:
    from distillkit.embedded.mixture.protocol import offered_protocols

    return offered_protocols()
