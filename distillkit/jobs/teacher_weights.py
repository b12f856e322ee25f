"""The frozen teacher of a run in less than float32."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from distillkit.contracts.teacher import Teacher
from distillkit.dtypes import DTYPES
from distillkit.errors import UsageError
from distillkit.models.precision import described, in_dtype, in_fp8, require_casts, require_fp8

FLOAT32 = "fp32"


def require_teacher_dtype(dtype: str, device: torch.device) -> None:
    """Refuse a type of weights that the device or the installation does not have; before a teacher is loaded.

    Raises:
        UsageError: saying what is missing.
    """
    if dtype == "fp8":
        require_fp8(device)


def set_apart(teacher: Teacher, dtype: str) -> Teacher:
    """Give a run's own teacher a network of its own where its weights will be changed: whoever else has the network
    keeps it as it is.

    Raises:
        UsageError: when the network does not take such weights.
    """
    if dtype != FLOAT32:
        require_casts(teacher, dtype)
        teacher.denoiser = copy.deepcopy(teacher.denoiser)
        if teacher.guide:
            teacher.guide = copy.copy(teacher.guide)
            teacher.guide.denoiser = copy.deepcopy(teacher.guide.denoiser)
    return teacher


COPIES = "the student and what is trained beside it start from its weights in float32"
ADAPTERS = "adapters, which are in float32, are trained beside these"


def refuse_fp8(dtype: str) -> None:
    """Refuse weights that nothing can be trained beside.

    Raises:
        UsageError: naming what can be done.
    """
    if dtype == "fp8":
        raise UsageError("--teacher-dtype fp8: adapters are trained beside weights in bf16, fp16 or fp32; use bf16")


def lower(teacher: Teacher, dtype: str, say: Callable[[str], None], others: str = COPIES) -> str:
    """Put the weights of a run's own teacher into `dtype`, after all copies of them were made; networks that have them
    in common with it follow.

    Args:
        others: what becomes of other networks, for people.

    Returns:
        What belongs beside the run's figures; "" where nothing was changed.
    """
    if dtype == FLOAT32:
        return ""
    _ = in_fp8(teacher) if dtype == "fp8" else in_dtype(teacher, DTYPES[dtype])
    say(
        f"teacher: weights in {described(teacher)}; what it predicts, its pairs and its own figures are of these, and "
        f"{others}"
    )
    return f"the teacher's weights were in {dtype}"
