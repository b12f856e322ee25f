"""The hash of weights in memory: what tells two models apart where no file's hash is known."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from distillkit.weights import plain_tensors


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    plain = dict(plain_tensors(tensors))
    for name in sorted(plain):
        value = plain[name].detach()
        # A tensor in parts is asked for by all processes that hold one.
        value = getattr(value, "full_tensor", lambda value=value: value)().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
