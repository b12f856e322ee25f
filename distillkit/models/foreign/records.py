"""What a foreign file is turned into: plain values, tensors that are not loaded yet, inert records of objects."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from distillkit.errors import DistillkitError


class Refused(DistillkitError):
    """The file asks for something that a file of weights has no need of, or does not hold what it claims."""


MOST_TENSORS = 200_000


@dataclass(eq=False)
class Instance:
    """An object in the file: the name of its class and its attributes. No code of that class exists here."""

    class_name: str
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Array:
    """A numpy array in the file; `value` is filled in when its contents are met."""

    value: np.ndarray[Any, Any] | None = None


@dataclass(eq=False)
class Storage:
    """`count` numbers of one type somewhere in the file, read on demand."""

    dtype: torch.dtype
    count: int
    read: Callable[[], bytes]


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage, checked to lie within it and to be no larger.

    Raises:
        Refused: for a view that is not.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.shape, *self.stride)
        if len(self.shape) != len(self.stride) or len(self.shape) > 8:
            raise Refused("a tensor's shape and strides do not fit each other")
        if not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
            raise Refused("a tensor's offset, shape or strides are not small non-negative integers")
        count = math.prod(self.shape)
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        if count and (count > self.storage.count or last >= self.storage.count):
            raise Refused(f"a tensor of shape {self.shape} claims more than the {self.storage.count:,} numbers stored")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def load(self, data: bytes | None = None) -> Tensor:
        """The tensor, contiguous and in memory of its own.

        Args:
            data: the storage's bytes, where they were read already.

        Raises:
            Refused: where the storage has fewer.
        """
        if not self.nbytes:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        data = self.storage.read() if data is None else data
        if len(data) != self.storage.count * self.storage.dtype.itemsize:
            raise Refused(f"a storage of {self.storage.count:,} numbers holds {len(data):,} bytes")
        is_bool = self.storage.dtype is torch.bool
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the buffer is read-only, and only read
            flat = torch.frombuffer(data, dtype=torch.uint8 if is_bool else self.storage.dtype)
        view = flat.as_strided(self.shape, self.stride, self.offset)
        return view != 0 if is_bool else view.clone(memory_format=torch.contiguous_format)


def load_tensors(found: Mapping[str, StoredTensor | Tensor], most: int) -> dict[str, Tensor]:
    """Load what is not loaded yet; at most `most` bytes of it, so that views of one storage cannot fill the memory.

    Raises:
        Refused: when they are more.
    """
    total = sum(tensor.nbytes for tensor in found.values() if isinstance(tensor, StoredTensor))
    if total > most:
        raise Refused(f"the tensors claim {total:,} bytes, more than a file of this size can mean")
    if len(found) > MOST_TENSORS:
        raise Refused(f"it names {len(found):,} tensors; at most {MOST_TENSORS:,} are read")
    views: dict[int, list[str]] = {}
    for name, value in found.items():
        if isinstance(value, StoredTensor):
            views.setdefault(id(value.storage), []).append(name)
    loaded: dict[str, Tensor] = {}
    # A storage is read once, whatever the number of its views.
    for names in views.values():
        stored = [(name, value) for name in names if isinstance(value := found[name], StoredTensor)]
        data = stored[0][1].storage.read() if any(value.nbytes for _, value in stored) else b""
        loaded |= {name: value.load(data) for name, value in stored}
    return {name: value if isinstance(value, Tensor) else loaded[name] for name, value in found.items()}


def is_state_dict(value: Any) -> TypeGuard[Mapping[Any, StoredTensor | Tensor]]:
    """Whether a value from a file maps names to tensors and to nothing else."""
    return isinstance(value, Mapping) and all(isinstance(item, (StoredTensor, Tensor)) for item in value.values())
