"""DMD2 for distillkit: distribution matching with a discriminator and without pairs (arXiv 2405.14867)."""

from __future__ import annotations

from distillkit import Method, hookimpl


@hookimpl
def distillkit_methods() -> list[type[Method]]:
    from distillkit_dmd2.method import DMD2

    return [DMD2]
