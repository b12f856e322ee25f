"""Teachers in half precision: the weights of their networks and text encoders."""

from __future__ import annotations

import torch

from distillkit.contracts.teacher import Teacher
from distillkit.errors import UsageError
from distillkit.models.prompts import Prompts
from distillkit.models.text.frozen import FrozenText

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def in_dtype(teacher: Teacher, dtype: torch.dtype) -> Teacher:
    """The same teacher with its weights in `dtype`; schedules, solvers and autoencoders stay in float32 or better.

    Raises:
        UsageError: for a network that computes in the type of its inputs alone, or another type.
    """
    check_dtype(dtype)
    if dtype == torch.float32:
        return teacher
    if not casts(teacher):
        raise UsageError(
            f"{teacher.spec.name} takes no weights in {DTYPES[dtype]}, only networks of diffusers do: load it in "
            "float32; runs compute in half precision with --precision bf16"
        )
    teacher.denoiser.to(dtype)
    conditioner = teacher.conditioner
    if isinstance(conditioner, Prompts) and isinstance(conditioner.encoder, FrozenText):
        encoder = conditioner.encoder.in_dtype(DTYPES[dtype])
        teacher.conditioner = conditioner.model_copy(update={"encoder": encoder})
    return teacher


def check_dtype(dtype: torch.dtype) -> None:
    """Refuse types that no network takes.

    Raises:
        UsageError: naming those that they do.
    """
    if dtype not in DTYPES:
        raise UsageError(f"weights are not loaded in {dtype}; known: {', '.join(map(str, DTYPES))}")


def casts(teacher: Teacher) -> bool:
    """Whether its network takes float32 samples whatever its weights are: those of diffusers do."""
    from diffusers import ModelMixin

    model = getattr(teacher.denoiser, "model", None)
    children = model.children() if isinstance(model, torch.nn.Module) else ()
    return any(isinstance(child, ModelMixin) for child in children)
