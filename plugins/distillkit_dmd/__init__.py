"""DMD for distillkit: one-step diffusion with distribution matching distillation (Yin et al. 2024)."""

from __future__ import annotations

from distillkit import Method, hookimpl


@hookimpl
def distillkit_methods() -> list[type[Method]]:
    from distillkit_dmd.method import DMD

    return [DMD]
