"""The one door for safetensors files: bounded headers, and one message for whatever is something else; and files that
are written tensor by tensor, so that what they hold need not be in memory at once."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from distillkit.reading import Unreadable, parse_json, regular_file, unlike

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LARGEST_HEADER = 32 * 2**20
"""Bytes; the header of a network with 100,000 tensors takes 12 MiB."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        Missing, Unreadable: as `read_with_metadata`.
    """
    return read_with_metadata(path)[0]


def read_with_metadata(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """The tensors of a safetensors file, on the CPU, and what its header says beside them.

    Raises:
        Missing: when there is no such file.
        Unreadable: when it is damaged, or of another kind; says of which, and what to do.
    """
    file = opened(path)
    with damaged(path):
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def mapped_tensors(path: Path, *, most: int = LARGEST_HEADER) -> dict[str, Tensor]:
    """The tensors of a safetensors file, memory-mapped: no page of theirs is touched before it is used.

    The header is read by itself, since a look at it through the mapping brings megabytes around it into memory.

    Args:
        most: bytes of its header.

    Raises:
        Unreadable: when it is gone or damaged.
    """
    import torch

    known = dtypes()
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(min(length, most)), str(path))
        storage: Any = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
        data = torch.empty(0, dtype=torch.uint8).set_(storage)[8 + length :]
        return {
            name: data[slice(*place["data_offsets"])].view(known[place["dtype"]]).reshape(place["shape"])
            for name, place in header.items()
            if name != "__metadata__"
        }
    except Unreadable:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise Unreadable(f"cannot read {path}: {_first_line(error)}") from error


def opened(path: Path) -> Any:
    """A safetensors file to read tensors from, or parts of them: safetensors' `safe_open`.

    Raises:
        Missing, Unreadable: as `read_with_metadata`.
    """
    from safetensors import safe_open

    _check_header(_head(path), f"{path}")
    with damaged(path):
        return safe_open(path, framework="pt")


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """What safetensors and torch raise for a damaged file, as `Unreadable`."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, ValueError, OSError, RuntimeError, OverflowError) as error:
        raise Unreadable(f"cannot read {path}: damaged safetensors ({_first_line(error)})") from error


def parse_tensors(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors in the bytes of a safetensors file.

    Raises:
        Unreadable: as `read_with_metadata`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    _check_header((data[:512], len(data)), where)
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise Unreadable(f"cannot read {where}: damaged safetensors ({_first_line(error)})") from error


def metadata_in(data: memoryview | bytes, where: str) -> dict[str, str]:
    """What the header of a safetensors file says beside its tensors.

    Raises:
        Unreadable: as `read_with_metadata`.
    """
    _check_header((bytes(data[:512]), len(data)), where)
    header = parse_json(bytes(data[8 : 8 + int.from_bytes(data[:8], "little")]), where)
    found = header.get("__metadata__") or {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


class Stored(Protocol):
    """A tensor that is read when it is its turn."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self) -> Tensor:
        """The tensor whole, on any device."""
        ...


@dataclass(frozen=True)
class Converted:
    """A tensor that becomes one of another type when it is read."""

    stored: Tensor | Stored
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.stored.shape)

    def read(self) -> Tensor:
        return _whole(self.stored).to(self.dtype)


def stream_tensors(path: Path, tensors: Mapping[str, Tensor | Stored], metadata: Mapping[str, str]) -> str:
    """Write a safetensors file and flush it to the disk, with one tensor at a time in memory that is not there already.

    The file is written in place: `distillkit.files.replacing` gives a path aside.

    Returns:
        The file's sha256, computed on the way.

    Raises:
        OSError: as the system gives it.
    """
    names = {dtype: name for name, dtype in dtypes().items()}
    # The widest numbers first, so that every tensor begins at a multiple of its numbers' size.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + size_of(tensor)
        header[name] = {"dtype": names[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        start: tuple[bytes | memoryview, ...] = (len(text).to_bytes(8, "little"), text)
        for data in chain(start, _contents(tensors, order)):
            file.write(data)
            digest.update(data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _contents(tensors: Mapping[str, Tensor | Stored], order: list[str]) -> Iterator[bytes | memoryview]:
    """The bytes of one tensor after the other."""
    import torch

    for name in order:
        whole = _whole(tensors[name]).detach().cpu().contiguous()
        yield whole.reshape(-1).view(torch.uint8).numpy().data


def _whole(tensor: Tensor | Stored) -> Tensor:
    import torch

    return tensor if isinstance(tensor, torch.Tensor) else tensor.read()


def size_of(tensor: Tensor | Stored) -> int:
    """Bytes of its numbers."""
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def dtypes() -> dict[str, torch.dtype]:
    """What safetensors calls the types that torch has."""
    import torch

    return {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
        "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
        "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64,
    }  # fmt: skip


def head_of(path: Path, most: int = 512) -> bytes:
    """The first bytes of a regular file.

    Raises:
        Missing, Unreadable: when there is none, or it cannot be read.
    """
    return _head(path, most)[0]


def _head(path: Path, most: int = 512) -> tuple[bytes, int]:
    with regular_file(path) as (file, size):
        return file.read(most), size


def _check_header(found: tuple[bytes, int], where: str) -> None:
    head, size = found
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= size - 8:
        if length > LARGEST_HEADER:
            raise Unreadable(
                f"cannot read {where}: its header has {length:,} bytes; at most {LARGEST_HEADER:,} are read"
            )
        return
    if what := unlike(head):
        raise Unreadable(f"cannot read {where}: {what}")
    if head[:2] == b"PK" or head[:1] == b"\x80":
        raise Unreadable(
            f"cannot read {where}: it is a file of torch.save or a pickle and not safetensors; `distillkit teachers "
            "convert` turns such files into a teacher, and executes nothing in them"
        )
    raise Unreadable(f"cannot read {where}: it is not safetensors, or was cut short ({size:,} bytes)")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
