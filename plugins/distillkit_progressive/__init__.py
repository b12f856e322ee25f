"""Progressive distillation for distillkit: two steps become one, again and again (Salimans & Ho 2022)."""

from __future__ import annotations

from distillkit import Method, hookimpl


@hookimpl
def distillkit_methods() -> list[type[Method]]:
    from distillkit_progressive.method import Progressive

    return [Progressive]
