"""One door for every foreign file of weights: the container is recognised by its first bytes, never by its name."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillkit.errors import UsageError
from distillkit.models.foreign.pickles import Budget, read_pickle
from distillkit.models.foreign.records import Refused
from distillkit.models.foreign.torch_files import LEGACY_MAGIC, read_archive, read_legacy, read_nested
from distillkit.reading import Unreadable, unlike
from distillkit.tensors import head_of, read_with_metadata


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
    head, size = head_of(path), path.stat().st_size
    if what := unlike(head):
        raise Refused(f"{path}: refused: {what}. Nothing in the file was run.")
    try:
        if head[:4] == b"PK\x03\x04":
            return Foreign(read_archive(path), size, {})
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
            try:
                tensors, metadata = read_with_metadata(path)
            except Unreadable as error:
                raise Refused(str(error).removeprefix(f"cannot read {path}: ")) from error
            return Foreign(tensors, size, dict(metadata))
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
    budget = Budget(copied=len(stream), nested=len(stream))
    value = read_pickle(stream, nested=lambda data: read_nested(data, budget), budget=budget)
    if isinstance(value, int) and value == LEGACY_MAGIC:
        stream.seek(0)
        return read_legacy(stream, budget)
    return value
