"""sCM for distillkit: continuous-time consistency models in TrigFlow's variables (Lu & Song 2024, arXiv 2410.11081)."""

from __future__ import annotations

from distillkit import Method, hookimpl


@hookimpl
def distillkit_methods() -> list[type[Method]]:
    from distillkit_scm.method import SCM

    return [SCM]
