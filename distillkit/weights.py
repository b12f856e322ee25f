"""What weights are in memory, whatever they look like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn


def plain_tensors(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors as they are in memory, by name: one in 8 bits is several, its numbers and its scales. One
    that several processes hold in parts is the whole of it."""
    for name, tensor in tensors.items():
        if hasattr(tensor, "__tensor_flatten__") and not hasattr(tensor, "full_tensor"):
            parts = tensor.__tensor_flatten__()[0]
            yield from plain_tensors({f"{name}.{part}": getattr(tensor, part) for part in parts})
        else:
            yield name, tensor


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a network's weights."""
    return sum(t.numel() * t.element_size() for _, t in plain_tensors(dict(module.named_parameters())))


def weight_types(module: nn.Module) -> list[str]:
    """The types of a network's weights, such as "torch.float32", sorted."""
    return sorted({str(tensor.dtype) for _, tensor in plain_tensors(dict(module.named_parameters()))})
