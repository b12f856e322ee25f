"""The globals that a pickle may name, and the inert thing that each becomes.

The list is what EDM's and EDM2's network pickles and `torch.save` files of state dicts hold, with the options of their
training beside them; nothing else is needed to read weights, so nothing else is allowed. No entry imports or calls code
that the file names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from distillkit.models.foreign.records import Array, Instance, Refused, Storage, StoredTensor
from distillkit.text import short

STORAGES: Mapping[str, torch.dtype] = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}

LARGEST_KEY = 2**60
"""Integers below are their own hashes."""

MODULES = frozenset(f"torch.nn.modules.container.{name}" for name in ("ModuleDict", "ModuleList", "Sequential"))

SETTINGS = frozenset(("argparse.Namespace",))
"""In which training programs keep their options beside the weights."""


@dataclass(frozen=True)
class Allowed:
    """A global on the list. `call` is what REDUCE does with it, `new` what NEWOBJ does; None is refused."""

    name: str
    call: Callable[..., Any] | None = None
    new: Callable[..., Any] | None = None


@dataclass(eq=False)
class NumpyType:
    """A numpy dtype in the making: its byte order comes in a later opcode."""

    dtype: np.dtype[Any]

    def build(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "=")):
            raise Refused("a numpy type has an unknown state")
        self.dtype = self.dtype.newbyteorder(state[1])


def numpy_type(code: Any, *flags: Any) -> NumpyType:
    if not isinstance(code, str | bytes) or len(code) > 4:
        raise Refused(f"a numpy type of code {short(code, 20)} is not a plain number")
    text = code.decode("ascii", "replace") if isinstance(code, bytes) else code
    if not (text[:1] in ("f", "i", "u", "b") and text[1:].isdecimal() and text.isascii()):
        raise Refused(f"a numpy type of code {text!r} is not a plain number")
    return NumpyType(np.dtype(text))


def numpy_scalar(kind: Any, data: Any) -> int | float | bool:
    if not isinstance(kind, NumpyType) or not isinstance(data, bytes) or len(data) != kind.dtype.itemsize:
        raise Refused("a numpy scalar is malformed")
    return np.frombuffer(data, kind.dtype)[0].item()


def numpy_array(*arguments: Any) -> Array:
    return Array()


def numpy_from_buffer(data: Any, kind: Any, shape: Any, order: Any) -> Array:
    array = Array()
    fill(array, (1, shape, kind, order == "F", data))
    return array


def fill(array: Array, state: Any) -> None:
    """The contents of an array: (version, shape, dtype, is_fortran, bytes)."""
    if not (isinstance(state, tuple) and len(state) == 5):
        raise Refused("a numpy array has an unknown state")
    _, shape, kind, fortran, data = state
    sound = isinstance(kind, NumpyType) and isinstance(data, (bytes, bytearray)) and isinstance(shape, tuple)
    if not sound or len(shape) > 8:
        raise Refused("a numpy array is malformed")
    if not all(type(n) is int and 0 <= n <= len(data) for n in shape):
        raise Refused("a numpy array claims a shape that it cannot have")
    count = 1
    for n in shape:
        count *= n
    if count * kind.dtype.itemsize != len(data):
        raise Refused(f"a numpy array of shape {shape} holds {len(data):,} bytes")
    array.value = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if fortran else "C")


# A call's arguments may come from the memo, at no cost to the file, so no call may copy much of what it is given.


def mapping() -> dict[Any, Any]:
    """OrderedDict and EasyDict become dict; their contents follow in later opcodes."""
    return {}


def plain_key(key: Any) -> Any:
    """Keys are text, bytes or small integers, whose hashes nobody can choose to be equal: with keys that collide, a
    dict takes quadratic time. Hashing anything deeper could also exhaust the stack."""
    if isinstance(key, str | bytes | bool) or key is None or (isinstance(key, int) and abs(key) < LARGEST_KEY):
        return key
    raise Refused(f"a {type(key).__name__} is used as a key")


def plain_set(items: Any = ()) -> set[Any]:
    """How protocol 2 writes sets."""
    if not isinstance(items, (list, tuple)) or len(items) > 64:
        raise Refused("a set is malformed")
    return {plain_key(item) for item in items}


def empty_bytes() -> bytes:
    """How protocol 2 writes no bytes."""
    return b""


def persistent_object(meta: Any) -> Instance:
    """EDM's persistence: class name and state are kept, the Python source that comes along is dropped unread."""
    if not (isinstance(meta, dict) and meta.get("type") == "class" and isinstance(meta.get("class_name"), str)):
        raise Refused("a persistent object is not of the kind that EDM writes")
    state = meta.get("state")
    if not isinstance(state, dict):
        raise Refused(f"the persistent object {meta['class_name'][:80]} has no attributes")
    return Instance(meta["class_name"], state)


def hook(owner: Any, name: Any) -> Instance:
    """The method that SiD's networks of EDM2's kind call before a layer: a record of its name, of which nothing is
    made."""
    if not isinstance(owner, Instance) or name != "_apply_forced_weight_normalization":
        raise Refused("it asks for the global 'builtins.getattr', which no file of weights needs but for a known hook")
    return Instance(name)


def tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> StoredTensor:
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise Refused("a tensor is malformed")
    return StoredTensor(storage, offset, shape, stride)


def parameter(data: Any, *rest: Any) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise Refused("a parameter is not a tensor")
    return data


def size(items: Any = ()) -> tuple[Any, ...]:
    if not isinstance(items, (list, tuple)) or len(items) > 8:
        raise Refused("a size is malformed")
    return tuple(items)


def _table() -> dict[str, Allowed]:
    calls: dict[str, Callable[..., Any]] = {
        "torch_utils.persistence._reconstruct_persistent_obj": persistent_object,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_parameter": parameter,
        "torch.Size": size,
        "numpy.dtype": numpy_type,
        "builtins.getattr": hook,
    }
    for core in ("numpy.core", "numpy._core"):
        calls[f"{core}.multiarray.scalar"] = numpy_scalar
        calls[f"{core}.multiarray._reconstruct"] = numpy_array
        calls[f"{core}.numeric._frombuffer"] = numpy_from_buffer
    for builtins in ("builtins", "__builtin__"):
        calls[f"{builtins}.set"] = plain_set
        calls[f"{builtins}.bytes"] = empty_bytes
    table = {name: Allowed(name, call) for name, call in calls.items()}
    for name in ("collections.OrderedDict", "dnnlib.util.EasyDict"):
        table[name] = Allowed(name, mapping, mapping)
    for name in (*MODULES, *SETTINGS):
        table[name] = Allowed(name, None, lambda name=name: Instance(name.rpartition(".")[2]))
    for name in (*STORAGES, "numpy.ndarray"):
        table[name] = Allowed(name)
    return table


ALLOWED: Mapping[str, Allowed] = _table()
