"""Weights that the first process of a job alone has, on their way to all."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from distillkit.parallel.strategy import local_of


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name that they have, those that are in no checkpoint too."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def given_memory(module: nn.Module, device: torch.device, parts_on: torch.device) -> None:
    """Give what a module has on "meta" memory of unset values, in place; what it has under two names stays one.

    Args:
        device: of what is whole. parts_on: of what is held in parts.
    """
    made: dict[Tensor, Tensor] = {}
    for inner in module.modules():
        kinds: tuple[dict[str, Any], ...] = (inner._parameters, inner._buffers)
        for held in kinds:
            for name, tensor in held.items():
                if tensor is None or tensor.device.type != "meta":
                    continue
                if tensor not in made:
                    empty = torch.empty_like(tensor, device=parts_on if isinstance(tensor, DTensor) else device)
                    trained = tensor.requires_grad
                    made[tensor] = nn.Parameter(empty, trained) if isinstance(tensor, nn.Parameter) else empty
                held[name] = made[tensor]


@torch.no_grad()
def hand_out(own: Tensor, whole: Tensor | None, mesh: DeviceMesh, device: torch.device) -> None:
    """Put what the first process has into a tensor that all have, and of one in parts every process its own rows.

    Args:
        own: whole or in parts by its rows, whose memory is written to.
        whole: its values, in the first process; None in the others.
        mesh: whose last dimension shares a tensor. device: of this process.
    """
    if own.numel() == 0:
        return
    if not isinstance(own, DTensor):
        sent = torch.empty(own.shape, dtype=own.dtype, device=device)
        if whole is not None:
            sent.copy_(whole)
        dist.broadcast(sent, src=0)
        own.copy_(sent)
        return
    size = mesh.size(-1)
    rows, rest = -(-own.shape[0] // size), own.shape[1:]
    part = torch.empty((rows, *rest), dtype=own.dtype, device=device)
    parts = None
    if whole is not None:
        # The last processes may have fewer rows, or none.
        padded = torch.zeros((rows * size, *rest), dtype=own.dtype, device=device)
        padded[: own.shape[0]].copy_(whole)
        parts = [padded[rank % size * rows :][:rows] for rank in range(mesh.size())]
    dist.scatter(part, parts, src=0)
    local = local_of(own)
    local.copy_(part[: local.shape[0]])
