"""The precision of network passes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator

from distillkit.dtypes import HALF
from distillkit.errors import UsageError


def precision_of(accelerator: Accelerator) -> str:
    """As the configuration calls it."""
    found: str = accelerator.mixed_precision
    return found if found in HALF else "fp32"


def require_precision(asked: str, accelerator: Accelerator) -> None:
    """Refuse a training that would be in another precision than it says.

    Raises:
        UsageError: saying how to make the accelerator.
    """
    if asked != (found := precision_of(accelerator)):
        mixed = asked if asked in HALF else "no"
        raise UsageError(
            f"the training is to be in {asked} (training.precision) and its accelerator computes in {found}; make that "
            f'with Accelerator(mixed_precision="{mixed}")'
        )


def autocast(accelerator: Accelerator) -> AbstractContextManager[object]:
    """Passes in the accelerator's precision while the context lasts.

    torch's own context rather than the accelerator's, some releases of which leave half precision switched on for the
    whole process after an exception.
    """
    dtype = HALF.get(accelerator.mixed_precision)
    return torch.autocast(accelerator.device.type, dtype=dtype) if dtype else nullcontext()
