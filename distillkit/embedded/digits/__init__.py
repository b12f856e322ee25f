"""The embedded digits: a teacher, its data, and the protocol that measures it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from distillkit.contracts.hooks import FeatureExtractor, Measure, hookimpl
from distillkit.contracts.teacher import Teacher


@hookimpl
def distillkit_teachers() -> Mapping[str, Callable[[], Teacher]]:
    from distillkit.embedded.digits.teacher import offer

    return {"digits": offer()}


@hookimpl
def distillkit_extractors() -> Mapping[str, Callable[[], FeatureExtractor]]:
    from distillkit.embedded.digits.protocol import offered_extractors

    return offered_extractors()


@hookimpl
def distillkit_protocols() -> Mapping[str, Mapping[str, Any] | Callable[[], Measure]]:
    from distillkit.embedded.digits.protocol import offered_protocols

    return offered_protocols()
