"""The two containers of `torch.save`: a zip archive (since torch 1.6) and the older sequence of pickles."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

from distillkit.models.foreign.allowed import STORAGES, Allowed
from distillkit.models.foreign.pickles import Budget, Stream, read_pickle
from distillkit.models.foreign.records import Refused, Storage

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MOST_MEMBERS = 200_000
MOST_STRUCTURE = 64 * 2**20
"""Bytes of the pickle that describes an archive; the numbers lie outside it."""


def storage_id(value: Any) -> tuple[Any, str, int]:
    """torch's persistent id of a storage -> (dtype, key, count).

    Raises:
        Refused: for anything else.
    """
    if not (isinstance(value, tuple) and len(value) >= 5 and value[0] == "storage"):
        raise Refused("it has a persistent id that is not a tensor's storage")
    kind, key, count = value[1], value[2], value[4]
    if not (isinstance(kind, Allowed) and kind.name in STORAGES):
        raise Refused("it has a storage of an unknown type")
    if not (isinstance(key, str) and type(count) is int and 0 <= count < 2**48):
        raise Refused("it has a malformed storage")
    return STORAGES[kind.name], key, count


def read_archive(path: Path) -> Any:
    """The object in a `torch.save` zip archive; its tensors are read from the file on demand.

    Raises:
        Refused: for compressed members, sizes beyond the file's own, or what `read_pickle` refuses.
    """
    size = path.stat().st_size
    try:
        # Stays open for as long as its storages are needed.
        check_members(path)
        archive = zipfile.ZipFile(path)
        root, structure = _structure(archive, size)
    except Refused:
        raise
    except Exception as error:  # zipfile raises many kinds for what damaged archives hold
        raise Refused(f"it is a damaged zip archive ({str(error)[:120]})") from error
    storages: dict[str, Storage] = {}
    total = 0

    def persistent(value: Any) -> Storage:
        nonlocal total
        dtype, key, count = storage_id(value)
        if key not in storages:
            total += count * dtype.itemsize
            if total > size:
                raise Refused(f"its tensors claim {total:,} bytes and the file has {size:,}")
            storages[key] = Storage(dtype, count, lambda: _member(archive, f"{root}data/{key}"))
        return storages[key]

    return read_pickle(io.BytesIO(structure), persistent=persistent)


def check_members(path: Path) -> None:
    """Refuse an archive that lists more members than any file of weights has: zipfile reads the whole list at once.

    Raises:
        Refused: when it lists more than `MOST_MEMBERS`.
    """
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 2**16 - 22))
        end = file.read()
    if (place := end.rfind(b"PK\x05\x06")) < 0 or len(end) < place + 20:
        raise Refused("it is a zip archive without its end: it was cut short")
    # The list's size and not its count: the count may say less than is there.
    if struct.unpack_from("<I", end, place + 12)[0] > MOST_MEMBERS * 100:
        raise Refused(f"it lists more than about {MOST_MEMBERS:,} members")


def _structure(archive: zipfile.ZipFile, size: int) -> tuple[str, bytes]:
    """The archive's root folder and the pickle that describes its tensors."""
    members = {info.filename: info for info in archive.infolist()}
    roots = [name for name in members if name.endswith("/data.pkl")]
    if any("/code/" in name for name in members):
        raise Refused("it is a TorchScript archive, which is a program and not weights")
    if len(roots) != 1:
        raise Refused("it is a zip archive, but not one of torch.save")
    root = roots[0].removesuffix("data.pkl")
    for info in members.values():
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
            raise Refused(f"its member {info.filename[:80]!r} is compressed or larger than the file")
    if members[roots[0]].file_size > MOST_STRUCTURE:
        raise Refused("its description is larger than any model needs")
    if root + "byteorder" in members and archive.read(root + "byteorder") != b"little":
        raise Refused("it is in big-endian byte order")
    return root, archive.read(roots[0])


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except Exception as error:  # zipfile raises many kinds for what damaged archives hold
        raise Refused(f"its member {name[:80]!r} is missing or damaged ({str(error)[:120]})") from error


def read_legacy(stream: Stream, budget: Budget | None = None) -> Any:
    """The object in a `torch.save` stream of pickles followed by the numbers (before torch 1.6, or nested in others).

    Raises:
        Refused: for a stream of another kind or byte order, or what `read_pickle` refuses.
    """
    budget = budget or Budget()
    if read_pickle(stream, budget=budget) != LEGACY_MAGIC:
        raise Refused("it is a pickle, but not one of torch.save")
    read_pickle(stream, budget=budget)
    system = read_pickle(stream, budget=budget)
    if not (isinstance(system, dict) and system.get("little_endian") is True):
        raise Refused("it is in big-endian byte order")
    storages: dict[str, Storage] = {}
    data: dict[str, tuple[int, int]] = {}

    def persistent(value: Any) -> Storage:
        dtype, key, count = storage_id(value)
        if len(value) > 5 and value[5] is not None:
            raise Refused("it has a view of a storage, which torch has not written since 2017")

        def read() -> bytes:
            start, length = data[key]
            stream.seek(start)
            return stream.read(length)

        return storages.setdefault(key, Storage(dtype, count, read))

    value = read_pickle(stream, persistent=persistent, budget=budget)
    keys = read_pickle(stream, budget=budget)
    if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys) or sorted(keys) != sorted(storages):
        raise Refused("its list of storages does not fit its tensors")
    here = stream.tell()
    stream.seek(0, 2)
    end = stream.tell()
    for key in keys:
        stream.seek(here)
        head = stream.read(8)
        storage = storages[key]
        length = storage.count * storage.dtype.itemsize
        if len(head) < 8 or struct.unpack("<q", head)[0] != storage.count or here + 8 + length > end:
            raise Refused(f"a storage of {storage.count:,} numbers is not there: the file is cut or its claim is false")
        data[key] = (here + 8, length)
        here += 8 + length
    return value


def read_nested(data: bytes, budget: Budget) -> Storage:
    """The one storage in the bytes of a nested archive."""
    value = read_legacy(io.BytesIO(data), budget)
    if not isinstance(value, Storage):
        raise Refused("a nested archive holds something else than numbers")
    return value
