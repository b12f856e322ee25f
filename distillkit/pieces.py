"""Tensors in safetensors files, whole or in pieces that several processes have written, and put together again.

The header of a file with pieces says where each belongs, under the name that torch's `HuggingFaceStorageWriter` uses:
`DCP_SHARDING_INFO`, JSON of {tensor: {"saved_offsets": [...], "shape": [...]}}.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from torch import Tensor

from distillkit.reading import Unreadable, adapted, parse_json
from distillkit.tensors import damaged, dtypes, opened
from distillkit.text import short

PLACES = "DCP_SHARDING_INFO"
Numbers = tuple[int, ...]
Extent = Annotated[list[Annotated[int, Field(ge=0, le=2**48)]], Field(max_length=16)]


class _Place(BaseModel):
    """Where a piece belongs in its tensor."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    saved_offsets: Extent
    shape: Extent


_PLACES = TypeAdapter(dict[str, _Place])


@dataclass(frozen=True)
class Part:
    """A tensor, or this process' piece of one, to be written.

    Args:
        tensor: on the CPU. offset: of its first number in the whole. shape: of the whole.
    """

    tensor: Tensor
    offset: Numbers
    shape: Numbers

    @classmethod
    def whole(cls, tensor: Tensor) -> Part:
        return cls(tensor, (0,) * tensor.ndim, tuple(tensor.shape))


def places_of(parts: Mapping[str, Part]) -> dict[str, str]:
    """The metadata of a file with these parts; empty where they are whole."""
    if all(part.tensor.shape == part.shape for part in parts.values()):
        return {}
    places = {name: {"saved_offsets": part.offset, "shape": part.shape} for name, part in parts.items()}
    return {PLACES: json.dumps(places, separators=(",", ":"), sort_keys=True)}


class PieceFile:
    """A safetensors file that is opened when it is first read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _handle(self) -> Any:
        return opened(self.path)

    def pieces(self) -> dict[str, tuple[Piece, Numbers, torch.dtype]]:
        """Every piece by its tensor's name, with the shape of the whole and its type.

        Raises:
            Unreadable: when the file is damaged, or a piece lies outside of its tensor.
        """
        text, known = (self._handle.metadata() or {}).get(PLACES), dtypes()
        where = f"{self.path}: {PLACES}"
        places = {} if text is None else adapted(_PLACES, parse_json(text.encode(), where), where)
        found = {}
        for name in self._handle.keys():  # noqa: SIM118 - a handle of safetensors is no mapping
            header = self._handle.get_slice(name)
            sizes, place = tuple(header.get_shape()), places.get(name)
            if (dtype := known.get(str(header.get_dtype()))) is None:
                raise Unreadable(f"cannot read {self.path}: {short(name)} has numbers of type {header.get_dtype()}")
            shape = sizes if place is None else tuple(place.shape)
            offset = (0,) * len(sizes) if place is None else tuple(place.saved_offsets)
            fits = len(sizes) == len(shape) == len(offset)
            if not fits or any(o + n > s for o, n, s in zip(offset, sizes, shape, strict=True)):
                raise Unreadable(
                    f"cannot read {self.path}: the piece of {short(name)} at {list(offset)} with shape {list(sizes)} "
                    f"lies outside of its tensor, which has shape {list(shape)}"
                )
            found[name] = Piece(self, name, offset, sizes), shape, dtype
        return found

    def read(self, name: str, begin: Numbers, sizes: Numbers) -> Tensor:
        """A box of a tensor in this file.

        Raises:
            Unreadable: when the file is damaged.
        """
        with damaged(self.path):
            if not sizes:
                return self._handle.get_tensor(name)
            box = tuple(slice(start, start + size) for start, size in zip(begin, sizes, strict=True))
            return self._handle.get_slice(name)[box]


@dataclass(frozen=True)
class Piece:
    """What a file holds of a tensor.

    Args:
        offset: of its first number in the whole. sizes: its shape.
    """

    file: PieceFile
    name: str
    offset: Numbers
    sizes: Numbers

    @property
    def numbers(self) -> int:
        return math.prod(self.sizes)

    def overlaps(self, other: Piece) -> bool:
        mine, others = zip(self.offset, self.sizes, strict=True), zip(other.offset, other.sizes, strict=True)
        return all(a < b + m and b < a + n for (a, n), (b, m) in zip(mine, others, strict=True))


@dataclass(frozen=True)
class Held:
    """A tensor in files, whole; it is read when it is asked for."""

    name: str
    shape: Numbers
    dtype: torch.dtype
    pieces: list[Piece] = field(default_factory=list)

    def read(self) -> Tensor:
        """The tensor, on the CPU.

        Raises:
            Unreadable: when a file is damaged.
        """
        if len(self.pieces) == 1:
            return self.pieces[0].file.read(self.name, self.pieces[0].offset, self.shape)
        whole = torch.empty(self.shape, dtype=self.dtype)
        self.read_into(whole)
        return whole

    @torch.no_grad()
    def read_into(self, target: Tensor) -> None:
        """Fill a tensor of this shape, of any type, layout and device.

        Raises:
            Unreadable: when a file is damaged.
        """
        for piece in self.pieces:
            place = tuple(slice(o, o + n) for o, n in zip(piece.offset, piece.sizes, strict=True))
            target[place].copy_(piece.file.read(self.name, (0,) * len(place), piece.sizes))

    def check(self) -> None:
        """Refuse pieces that overlap or leave something out.

        Raises:
            Unreadable: naming the tensor and the files.
        """
        files = sorted({str(piece.file.path) for piece in self.pieces})
        axis = max(range(len(self.shape)), key=lambda k: len({p.offset[k] for p in self.pieces}), default=0)
        along = sorted((p for p in self.pieces if p.numbers), key=lambda p: p.offset)
        if self.shape:
            along.sort(key=lambda p: p.offset[axis])
        for k, piece in enumerate(along):
            for other in along[k + 1 :]:
                if self.shape and other.offset[axis] >= piece.offset[axis] + piece.sizes[axis]:
                    break
                if piece.overlaps(other):
                    raise Unreadable(
                        f"cannot read {piece.file.path}: its piece of {short(self.name)} overlaps that in "
                        f"{other.file.path}"
                    )
        there, due = sum(piece.numbers for piece in along), math.prod(self.shape)
        if there != due:
            raise Unreadable(
                f"cannot read {', '.join(files[:3])}{', ...' if len(files) > 3 else ''}: pieces of {short(self.name)} "
                f"are missing, {there:,} of its {due:,} numbers are there"
            )


def held_in(paths: Sequence[Path]) -> dict[str, Held]:
    """The tensors that files hold together, each of them whole.

    Raises:
        Missing, Unreadable: naming the file that is missing, damaged or does not go with the others, or the tensor of
            which pieces overlap or are missing.
    """
    found: dict[str, Held] = {}
    for path in paths:
        for name, (piece, shape, dtype) in PieceFile(path).pieces().items():
            held = found.setdefault(name, Held(name, shape, dtype))
            if (held.shape, held.dtype) != (shape, dtype):
                raise Unreadable(
                    f"cannot read {path}: {short(name)} has shape {list(shape)} and {dtype} there, and "
                    f"{list(held.shape)} and {held.dtype} in {held.pieces[0].file.path}"
                )
            held.pieces.append(piece)
    for held in found.values():
        held.check()
    return found
