"""Truncated consistency models for distillkit (Lee et al. 2024, arXiv 2410.14895)."""

from __future__ import annotations

from distillkit import Method, hookimpl


@hookimpl
def distillkit_methods() -> list[type[Method]]:
    from distillkit_tcm.method import TCM

    return [TCM]
