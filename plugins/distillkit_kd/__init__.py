"""Knowledge distillation for distillkit: regress the ends of the teacher's trajectories (Luhman & Luhman 2021)."""

from __future__ import annotations

from distillkit import Method, hookimpl


@hookimpl
def distillkit_methods() -> list[type[Method]]:
    from distillkit_kd.method import KnowledgeDistillation

    return [KnowledgeDistillation]
