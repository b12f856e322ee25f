"""Consistency models tuned from the teacher's weights for distillkit: ECT (Geng et al. 2024, arXiv 2406.14548) and iCT
(Song & Dhariwal 2023, arXiv 2310.14189)."""

from __future__ import annotations

from distillkit import Method, hookimpl


@hookimpl
def distillkit_methods() -> list[type[Method]]:
    from distillkit_ect.method import ECT

    return [ECT]
