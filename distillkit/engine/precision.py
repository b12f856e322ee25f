"""The precision of network passes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator

from distillkit.dtypes import HALF


def autocast(accelerator: Accelerator) -> AbstractContextManager[object]:
    """Passes in the accelerator's precision while the context lasts.

    torch's own context rather than the accelerator's, some releases of which leave half precision switched on for the
    whole process after an exception.
    """
    dtype = HALF.get(accelerator.mixed_precision)
    return torch.autocast(accelerator.device.type, dtype=dtype) if dtype else nullcontext()
