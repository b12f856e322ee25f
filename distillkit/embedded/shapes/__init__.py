"""The embedded text-to-image teacher: coloured shapes that a sentence places, drawn by a program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from distillkit.contracts.hooks import FeatureExtractor, Measure, hookimpl
from distillkit.contracts.teacher import Teacher


@hookimpl
def distillkit_teachers() -> Mapping[str, Callable[[], Teacher]]:
    from distillkit.embedded.shapes.teacher import offer

    return {"shapes": offer()}


@hookimpl
def distillkit_extractors() -> Mapping[str, Callable[[], FeatureExtractor]]:
    from distillkit.embedded.shapes.protocol import shapes_features

    return {"shapescnn": shapes_features}


@hookimpl
def distillkit_protocols() -> Mapping[str, Mapping[str, Any] | Callable[[], Measure]]:
    from distillkit.embedded.shapes.protocol import ShapesMeasure

    return {"shapes": ShapesMeasure}
