"""Arrays that lie as .npy, .npz or .safetensors in the files of data: bounded, and never a pickle."""

from __future__ import annotations

import io
import math
import zipfile
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from distillkit.data.files import MOST_BYTES
from distillkit.data.labels import shown
from distillkit.data.zips import require_plain
from distillkit.errors import DistillkitError
from distillkit.npy import read_header
from distillkit.tensors import metadata_in, parse_tensors

ARRAYS = (".npy", ".npz", ".safetensors")
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".pyd", ".ckpt", ".bin")
MOST_ARRAYS = 64
UNNAMED = "arr_0"
"""What numpy calls an array of an archive that was given no name."""


def arrays_in(data: memoryview, ending: str, name: str, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The arrays of a file by name, and what it records of itself.

    Args:
        ending: one of `ARRAYS`.
        name: of the member, which an array is called by that has no name in it.
        where: it lies, for messages.

    Raises:
        DistillkitError: when it is damaged, holds objects, or would take too much memory.
    """
    facts: dict[str, str] = {}
    try:
        if ending == ".npy":
            found = {UNNAMED: _array(io.BytesIO(data), len(data), where)}
        elif ending == ".npz":
            found = _archive(data, where)
        else:
            found, facts = parse_tensors(bytes(data), where), metadata_in(data, where)
    except DistillkitError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds for damaged files
        raise DistillkitError(f"cannot read {where}: {(str(error).splitlines() or [''])[0][:200]}") from error
    if len(found) > MOST_ARRAYS:
        raise DistillkitError(f"{where} holds {len(found):,} arrays; at most {MOST_ARRAYS} are read")
    named = {name if key == UNNAMED and len(found) == 1 else key.lower(): value for key, value in found.items()}
    return named, facts


def _archive(data: memoryview, where: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if len(members) > MOST_ARRAYS or sum(member.file_size for member in members) > MOST_BYTES:
            raise DistillkitError(f"{where} holds more than {MOST_ARRAYS} arrays or {MOST_BYTES:,} bytes; refused")
        for member in members:
            require_plain(member, f"{where}:{shown(member.filename)}")
            with archive.open(member) as file:
                found[member.filename.removesuffix(".npy")] = _array(file, member.file_size, where)
    return found


def _array(file: IO[bytes], size: int, where: str) -> Tensor:
    """An array in numpy's format, of at most `size` bytes."""
    shape, fortran, dtype = read_header(file)
    needed = math.prod(shape) * dtype.itemsize
    if dtype.kind not in "fiub" or dtype.hasobject:
        raise DistillkitError(f"{where} is an array of {dtype}, which are no numbers that are read")
    if fortran or needed > size or any(side < 0 for side in shape):
        raise DistillkitError(f"{where}: the array {shape} is not what it claims, or its columns come first")
    content: Any = np.frombuffer(file.read(needed), dtype)
    return torch.from_numpy(content.reshape(shape).astype(dtype.newbyteorder("=")))
