"""Weights in one file, or in several of bounded size with an index, as diffusers and transformers write them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field

from distillkit.files import replacing, retried, sha256, write_json
from distillkit.reading import Missing, Unreadable, read_model
from distillkit.tensors import Stored, read_tensors, size_of, stream_tensors
from distillkit.text import short

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 5 * 10**9
"""The largest file, as transformers has it."""
SUFFIX, INDEX = ".safetensors", ".safetensors.index.json"
LARGEST_INDEX = 64 * 2**20


class ShardIndex(BaseModel):
    """What lies beside the files, NAME.safetensors.index.json."""

    weight_map: dict[str, Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]] = Field(
        min_length=1, max_length=200_000, description="tensor -> file beside the index"
    )

    @property
    def shards(self) -> list[str]:
        return sorted(set(self.weight_map.values()))


def write_weights(
    folder: Path, stem: str, tensors: Mapping[str, Tensor | Stored], *, shard_bytes: int = SHARD_BYTES
) -> str:
    """Write STEM.safetensors, or STEM-00001-of-0000N.safetensors and so on with their index where they are larger than
    `shard_bytes`; tensors that are not in memory yet are read one at a time. What the stem named before is removed.

    Returns:
        The hash of the files, as `hash_of_weights` has it.

    Raises:
        WriteError: when the disk refuses it for good; no file is half written.
    """
    parts = list(_parts(tensors, shard_bytes))
    names = [
        f"{stem}{SUFFIX}" if len(parts) == 1 else f"{stem}-{k + 1:05d}-of-{len(parts):05d}{SUFFIX}"
        for k in range(len(parts))
    ]
    hashes = {}
    for name, part in zip(names, parts, strict=True):
        hashes[name] = _written(folder / name, {key: tensors[key] for key in part})
    if len(parts) > 1:
        places = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        total = sum(size_of(tensor) for tensor in tensors.values())
        write_json(folder / f"{stem}{INDEX}", {"metadata": {"total_size": total}, "weight_map": places})
        names.append(f"{stem}{INDEX}")
    for former in (folder / f"{stem}{SUFFIX}", folder / f"{stem}{INDEX}", *folder.glob(f"{stem}-*-of-*{SUFFIX}")):
        if former.name not in names:
            former.unlink(missing_ok=True)
    return hash_of_files(hashes)


def _parts(tensors: Mapping[str, Tensor | Stored], most: int) -> Iterator[list[str]]:
    """Names of what goes into each file, in their order."""
    part: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if part and size + size_of(tensor) > most:
            yield part
            part, size = [], 0
        part.append(name)
        size += size_of(tensor)
    yield part


def _written(path: Path, tensors: Mapping[str, Tensor | Stored]) -> str:
    found = [""]

    def write() -> None:
        with replacing(path) as aside:
            found[0] = stream_tensors(aside, tensors, {"format": "pt"})

    retried(write, path)
    return found[0]


def has_weights(folder: Path, stem: str) -> bool:
    return (folder / f"{stem}{SUFFIX}").is_file() or (folder / f"{stem}{INDEX}").is_file()


def read_weights(folder: Path, stem: str) -> tuple[dict[str, Tensor], str]:
    """What `write_weights` wrote, in the types that it has there, and the hash of the files.

    Raises:
        Missing, Unreadable: when there is no such file, or one is missing, damaged or incomplete.
    """
    whole = folder / f"{stem}{SUFFIX}"
    if whole.is_file():
        return read_tensors(whole), sha256(whole)
    where = folder / f"{stem}{INDEX}"
    index = read_model(where, ShardIndex, most=LARGEST_INDEX)
    tensors: dict[str, Tensor] = {}
    for shard in index.shards:
        try:
            held = read_tensors(folder / shard)
        except Missing as error:
            raise Unreadable(f"{where} lists {shard}, which is not there") from error
        own = {name for name, file in index.weight_map.items() if file == shard}
        if missing := sorted(own - held.keys()):
            raise Unreadable(f"{folder / shard} does not hold {short(missing[0])}, which {where.name} says is there")
        tensors |= {name: held[name] for name in own}
    return tensors, hash_of_files({shard: sha256(folder / shard) for shard in index.shards})


def hash_of_files(hashes: Mapping[str, str]) -> str:
    """The hash of weights in files, by the files' own: that of a file alone, or of all names and hashes."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = (f"{name} {hashes[name]}\n" for name in sorted(hashes))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
