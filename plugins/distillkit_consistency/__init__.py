"""Consistency distillation for distillkit: consistency models (Song et al. 2023), distilled or trained alone."""

from __future__ import annotations

from distillkit import Method, hookimpl


@hookimpl
def distillkit_methods() -> list[type[Method]]:
    from distillkit_consistency.method import Consistency

    return [Consistency]
