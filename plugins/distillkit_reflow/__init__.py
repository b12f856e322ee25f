"""Reflow for distillkit: straight flows and their distillation into one step (Liu et al. 2022, 2023)."""

from __future__ import annotations

from distillkit import Method, hookimpl


@hookimpl
def distillkit_methods() -> list[type[Method]]:
    from distillkit_reflow.method import Reflow

    return [Reflow]
