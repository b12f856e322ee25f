"""SiD and SiDA for distillkit: score identity distillation (Zhou et al. 2024, arXiv 2404.04057 and 2410.14919)."""

from __future__ import annotations

from distillkit import Method, hookimpl


@hookimpl
def distillkit_methods() -> list[type[Method]]:
    from distillkit_sid.adversarial import SiDA
    from distillkit_sid.method import SiD

    return [SiD, SiDA]
