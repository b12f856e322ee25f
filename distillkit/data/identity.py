"""What a teacher's samples depend on: the part that the keys of all caches of them share."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from distillkit.contracts.conditioner import Conditioner
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.guide import Guide
from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.models.hashes import content_hash
from distillkit.registry import registry
from distillkit.weights import weight_types


def teacher_identity(teacher: Teacher, *, guided: bool = True) -> dict[str, Any]:
    """Everything of a teacher that its samples depend on, as plain data: network, schedule, weights, conditioner, codec
    and shape, and the network that guides it.

    Weights count by the hash of their file, or where the teacher has none, by their contents. Name, licence and source
    do not count, nor does the solver, which callers choose.

    Args:
        guided: whether its samples are guided; a network that guides it does not count where they are not.
    """
    return {
        **_network(teacher.denoiser, teacher.spec),
        "conditioner": conditioner_identity(teacher.conditioner),
        "codec": described_part("codecs", teacher.codec),
        "shape": list(teacher.spec.shape),
        **({"guide": guide_identity(teacher.guide)} if guided and teacher.guide else {}),
    }


def guide_identity(guide: Guide) -> dict[str, Any]:
    """Everything of a guide that guided samples depend on."""
    return {**_network(guide.denoiser, guide.spec), "conditional": guide.conditional}


def _network(denoiser: Denoiser, spec: TeacherSpec) -> dict[str, Any]:
    kind = type(denoiser)
    return {
        "network": dict(denoiser.description or spec.network) or f"{kind.__module__}:{kind.__qualname__}",
        "schedule": described_part("", denoiser.schedule),
        "sigma_data": getattr(denoiser, "sigma_data", 0.5),
        "weights": spec.weights_sha256 or content_hash(_tensors(denoiser.state_dict())),
        "precision": weight_types(denoiser),
    }


def conditioner_identity(conditioner: Conditioner) -> dict[str, Any]:
    """Everything that conditions depend on, keys apart."""
    rounded = {"rounded to": conditioner.rounded_to} if conditioner.rounded_to else {}
    return {**described_part("conditioners", conditioner), **rounded}


def described_part(kind: str, part: BaseModel) -> dict[str, Any]:
    """As files describe it, or where no plugin offers its class, by the class and its fields."""
    described = registry().describe(kind, part) if kind else {}
    cls = type(part)
    return described or {"kind": f"{cls.__module__}:{cls.__qualname__}", **part.model_dump(mode="json")}


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
