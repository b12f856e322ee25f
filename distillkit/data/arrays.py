"""Images in a .npz file, as `--save-images FILE.npz` and ADM's tools write it."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from distillkit.data.decoding import Damaged
from distillkit.data.files import MOST_BYTES, ImageFiles, fingerprint
from distillkit.data.labels import check_labels, shown
from distillkit.data.zips import require_plain
from distillkit.errors import DistillkitError, UsageError
from distillkit.npy import read_header

MOST_COMPRESSED = 2**30
"""Compressed arrays of more bytes are refused; others are read in place, however large."""

LABEL_NAMES = ("arr_1", "label", "labels", "y")


class ArrayImages(ImageFiles):
    """Images (N, H, W, C) or (N, H, W) uint8 in a .npz file, with C = 1 or 3; a second array (N,) of integers is their
    labels.

    Raises:
        UsageError: when it holds no such array, or several.
        DistillkitError: when it is damaged, or would take too much memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        arrays = _arrays(path)
        images = {name: value for name, value in arrays.items() if value.dtype == np.uint8 and value.ndim in (3, 4)}
        images = {name: value for name, value in images.items() if value.ndim == 3 or value.shape[3] in (1, 3)}
        if len(images) != 1:
            held = (
                ", ".join(f"{shown(name)} {value.dtype} {value.shape}" for name, value in arrays.items()) or "nothing"
            )
            hint = " These are statistics: name them by --reference." if {"mu", "sigma"} <= set(arrays) else ""
            raise UsageError(
                f"{path} must hold one array of images (N, H, W, 3), (N, H, W, 1) or (N, H, W) of uint8, as "
                f"--save-images writes it, and holds {held}.{hint}"
            )
        ((self.column, self._images),) = images.items()
        count = len(self._images)
        self.names = [f"{self.column}[{index}]" for index in range(count)]
        self.labels, used = None, {self.column}
        for name in LABEL_NAMES:
            found = arrays.get(name)
            if found is not None and found.shape == (count,) and found.dtype.kind in "iu":
                self.labels, used = check_labels(found, self.names, f"{path}:{name}"), used | {name}
                break
        unused = sorted(set(arrays) - used)
        self.left_out = [f"the array {shown(name)}" for name in unused[:4]]
        ends = [self._images[k].tobytes() for k in sorted({0, count // 2, count - 1}) if count]
        self.fingerprint = fingerprint(
            [list(self._images.shape), path.stat().st_size, *(hash_of.hex() for hash_of in map(_digest, ends))],
            self.labels,
        )

    def read(self, index: int, most: int = MOST_BYTES) -> bytes:
        """As a PPM or PGM file."""
        pixels = self._images[index]
        height, width = pixels.shape[:2]
        kind = "P6" if pixels.ndim == 3 and pixels.shape[2] == 3 else "P5"
        if pixels.nbytes > MOST_BYTES:
            raise Damaged(f"the image {self.where(index)} has {pixels.nbytes:,} bytes, more than {MOST_BYTES:,}")
        return (f"{kind} {width} {height} 255\n".encode() + pixels.tobytes())[:most]

    def where(self, index: int) -> str:
        return f"{self.path}:{shown(self.names[index])}"


def _arrays(path: Path) -> dict[str, Any]:
    """Name -> array; stored members are memory-mapped.

    Raises:
        UsageError: when it is no .npz file.
        DistillkitError: when it is damaged, or too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            found: dict[str, Any] = {}
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in found:
                    raise DistillkitError(f"{path} holds {shown(name)} twice")
                found[name] = _array(path, archive, member)
            return found
    except zipfile.BadZipFile as error:
        raise UsageError(f"{path} is not a readable .npz file: {error}") from error
    except DistillkitError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds for damaged files
        reason = (str(error).splitlines() or [""])[0][:200]
        raise DistillkitError(f"cannot read {path}: {reason or type(error).__name__}") from error


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    require_plain(member, f"{path}:{shown(member.filename)}")
    with archive.open(member) as file:
        shape, fortran, dtype = read_header(file)
        offset = file.tell()
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if dtype.hasobject or size + offset > member.file_size or fortran:
            raise DistillkitError(f"{path}: the array {shown(member.filename)} is not what it claims, or of objects")
        if member.compress_type == zipfile.ZIP_STORED and size:
            with path.open("rb") as raw:
                raw.seek(member.header_offset + 26)
                lengths = raw.read(4)
            start = member.header_offset + 30 + int.from_bytes(lengths[:2], "little")
            start += int.from_bytes(lengths[2:], "little") + offset
            return np.memmap(path, dtype, "r", start, shape)
        if size > MOST_COMPRESSED:
            raise DistillkitError(
                f"{path}: the array {shown(member.filename)} is compressed and has {size:,} bytes, more than "
                f"{MOST_COMPRESSED:,}: write it by numpy.savez"
            )
        return np.frombuffer(file.read(size), dtype).reshape(shape)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
