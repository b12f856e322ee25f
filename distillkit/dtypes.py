"""Types of numbers by the names that options have."""

from __future__ import annotations

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HALF = {name: dtype for name, dtype in DTYPES.items() if dtype.itemsize == 2}
"""Of half precision."""
