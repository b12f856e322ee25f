"""Derivatives of networks along trajectories, without gradient: in forward mode, or by the difference of two passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from distillkit.contracts.denoiser import Denoiser, uncompiled
from distillkit.contracts.schedule import Schedule
from distillkit.errors import UsageError, is_out_of_memory

TangentName = Literal["difference", "jvp"]
STEP = 0.05
"""A difference is taken over twice this change of ln(sigma / alpha)."""

AtLevel = Callable[[Tensor, Tensor], Tensor]
"""(x, level) -> output: x and output (B, ...), level (B,) = ln(sigma / alpha), all float32 or float64."""


def level_range(schedule: Schedule, first: float | None = None) -> tuple[float, float]:
    """Smallest and largest ln(sigma / alpha) at which a difference can be taken within the schedule.

    Args:
        first: the time from which samples are made, the largest that matters; the schedule's largest by default.
    """
    ends = torch.tensor([schedule.t_min, schedule.t_max if first is None else first], dtype=torch.float64)
    low, high = schedule.ratio(ends).log().tolist()
    return low + STEP, high - STEP


@torch.no_grad()
def along(function: AtLevel, x: Tensor, level: Tensor, slope: Tensor, how: TangentName, network: Denoiser) -> Tensor:
    """d function(x, level) / dlevel along the trajectory with dx/dlevel = slope; (B, ...).

    "jvp" is exact, at the memory of two passes, and needs a network whose every operation can be differentiated in
    forward mode; fused attention is replaced by its plain operations. "difference" is [function(x + h slope, level + h)
    - function(x - h slope, level - h)] / 2h, h = `STEP`, and runs with any network. Both count two evaluations.

    Passes are in float32 (float64 inputs' dtype), whatever the training's precision: neighbours differ in digits that
    half precision does not have.

    Args:
        x: (B, ...).
        level: (B,), ln(sigma / alpha), within `level_range`.
        slope: (B, ...).
        network: what the function evaluates.

    Raises:
        UsageError: where the network cannot be differentiated in forward mode; names the way out.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, level, slope = x.to(dtype), level.to(dtype), slope.to(dtype)
    with torch.autocast(x.device.type, enabled=False), uncompiled(network):
        if how == "difference":
            after, before = (function(x + h * slope, level + h) for h in (STEP, -STEP))
            return (after - before) / (2 * STEP)
        try:
            with sdpa_kernel(SDPBackend.MATH):
                tangent: Tensor = torch.func.jvp(function, (x, level), (slope, torch.ones_like(level)))[1]
        except RuntimeError as error:  # NotImplementedError is one of these
            if is_out_of_memory(error):
                raise
            raise UsageError(
                f"the network {type(network).__name__} cannot be differentiated in forward mode "
                f"({str(error).strip().splitlines()[0]}); --tangent difference works with any network"
            ) from error
    return tangent
