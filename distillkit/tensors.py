"""The one door for safetensors files: bounded headers, and one message for whatever is something else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from distillkit.reading import Unreadable, parse_json, regular_file, unlike

if TYPE_CHECKING:
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
    from safetensors import SafetensorError, safe_open

    _check_header(_head(path), f"{path}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
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
