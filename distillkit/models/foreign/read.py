"""One door for every foreign file of weights: the container is recognised by its first bytes, never by its name."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from distillkit.errors import UsageError
from distillkit.models.foreign.pickles import Budget, read_pickle
from distillkit.models.foreign.records import Refused
from distillkit.models.foreign.torch_files import LEGACY_MAGIC, read_archive, read_legacy, read_nested


@dataclass(frozen=True)
class Foreign:
    """What was read: `value` holds plain values, `StoredTensor`s and `Instance`s; `size` is the file's, in bytes.

    Tensors of a safetensors file are in `value` as torch tensors; `metadata` is its header's.
    """

    value: Any
    size: int
    metadata: dict[str, str]


def read_foreign(path: Path) -> Foreign:
    """Read a safetensors file, a pickle of EDM's or EDM2's kind, or a `torch.save` file. Nothing in it is executed.

    Raises:
        UsageError: when there is no such file.
        Refused: when it is of another kind, damaged, or asks for more than data; one message that names the file.
    """
    if not path.is_file():
        raise UsageError(f"{path} is not a file")
    try:
        with path.open("rb") as file:
            head = file.read(9)
        size = path.stat().st_size
        if head[:4] == b"PK\x03\x04":
            return Foreign(read_archive(path), size, {})
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
            return _safetensors(path, size)
        if head[:1] == b"\x80":
            return Foreign(_pickle(path), size, {})
        raise Refused("it is not a pickle, a torch.save archive or a safetensors file")
    except Refused as refused:
        raise Refused(
            f"{path}: refused: {refused}. Nothing in the file was run. If you trust it, let the program that wrote it "
            "save its weights as safetensors."
        ) from refused.__cause__


def _pickle(path: Path) -> Any:
    """The map stays open for as long as its storages are needed."""
    with path.open("rb") as file:
        stream = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    budget = Budget(copied=len(stream))
    value = read_pickle(stream, nested=lambda data: read_nested(data, budget), budget=budget)
    if value == LEGACY_MAGIC:
        stream.seek(0)
        return read_legacy(stream, budget)
    return value


def _safetensors(path: Path, size: int) -> Foreign:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Foreign(tensors, size, file.metadata() or {})
    except (SafetensorError, ValueError, OSError) as error:
        raise Refused(f"it is a damaged safetensors file ({str(error).splitlines()[0]})") from error
