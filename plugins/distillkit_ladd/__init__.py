"""LADD for distillkit: latent adversarial diffusion distillation (Sauer et al. 2024, arXiv 2403.12015)."""

from __future__ import annotations

from distillkit import Method, hookimpl


@hookimpl
def distillkit_methods() -> list[type[Method]]:
    from distillkit_ladd.method import LADD

    return [LADD]
