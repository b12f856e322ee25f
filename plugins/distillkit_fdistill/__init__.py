"""f-distill for distillkit: distribution matching under any f-divergence (Xu et al. 2025, arXiv 2502.15681)."""

from __future__ import annotations

from distillkit import Method, hookimpl


@hookimpl
def distillkit_methods() -> list[type[Method]]:
    from distillkit_fdistill.method import FDistill

    return [FDistill]
