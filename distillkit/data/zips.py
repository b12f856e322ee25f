"""Images in a zip file, read straight from their places in it."""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from distillkit.data.decoding import Damaged, is_image_name
from distillkit.data.files import MOST_BYTES, ImageFiles, counted, fingerprint
from distillkit.data.folders import MOST_LABEL_BYTES, NO_DATA, others
from distillkit.data.labels import LABELS, label_files, shown
from distillkit.errors import DistillkitError, UsageError

METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
"""The compressions that are read. Those of others (bzip2, LZMA) grow without bound in small pieces."""


class ZipImages(ImageFiles):
    """Images in a zip file; members are read without a lock, and never more of them than they claim.

    Raises:
        UsageError: when it is not a zip file, or holds parts of a data set in the place of classes.
        DistillkitError: for members that point outside, are encrypted, compressed otherwise or very large.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = [(_name(member), member) for member in archive.infolist() if not member.is_dir()]
            self._file = path.open("rb")
        except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError, RuntimeError) as error:
            raise UsageError(f"{path} is not a readable zip file: {error}") from error
        self._lock, self._length = threading.Lock(), os.fstat(self._file.fileno()).st_size
        for name, _ in members:
            place = PurePosixPath(name)
            if place.is_absolute() or ".." in place.parts or (place.parts and ":" in place.parts[0]):
                raise DistillkitError(f"{path}: refused: its member {shown(name, 80)} points outside of it")
        self._texts = {name: m for name, m in members if name.lower().endswith((".txt", ".csv", ".tsv", "jsonl"))}
        taken = self._taken(members)
        self.names, self._members = [name for name, _ in taken], [member for _, member in taken]
        by_name = dict(members)
        labelling = label_files(self.names, lambda name: self._labels(by_name.get(name)), f"{path}:", packed=True)
        self.labels, self.class_names, self.notes = labelling.labels, labelling.class_names, labelling.notes
        sizes = [[name, m.file_size, m.CRC] for name, m in taken]
        self.fingerprint = fingerprint(sizes, self.labels)

    @cached_property
    def captions(self) -> Sequence[str] | None:  # type: ignore[override]
        """Of the first metadata table there is, or of the .txt members beside the images."""
        from distillkit.data.captions import LARGEST, texts_beside, texts_listed

        def table(name: str) -> BinaryIO | None:
            return io.BytesIO(self._labels(self._texts[name]) or b"") if name in self._texts else None

        if (listed := texts_listed(self.names, table, f"{self.path}:")) is not None:
            return listed

        def read(name: str) -> bytes | None:
            if (member := self._texts.get(name)) is None:
                return None
            require_plain(member, f"{self.path}:{shown(name)}")
            return self._read(member, f"{self.path}:{shown(name)}", LARGEST + 1)

        texts = texts_beside(self.names, read, f"{self.path}:") if self._texts else ()
        return texts if any(texts) else None

    def read(self, index: int, most: int = MOST_BYTES) -> bytes:
        return self._read(self._members[index], self.where(index), most)

    def where(self, index: int) -> str:
        return f"{self.path}:{shown(self.names[index])}"

    def _taken(self, members: list[tuple[str, zipfile.ZipInfo]]) -> list[tuple[str, zipfile.ZipInfo]]:
        """The images, sorted.

        Raises:
            DistillkitError: for what cannot be read, or two of one name.
        """
        hidden: list[str] = []
        links: list[str] = []
        rest: Counter[str] = Counter()
        taken: dict[str, zipfile.ZipInfo] = {}
        for name, member in members:
            parts = PurePosixPath(name).parts
            if any(part.startswith(".") or part in NO_DATA for part in parts):
                hidden.append(name)
            elif stat.S_ISLNK(member.external_attr >> 16):
                links.append(name)
            elif not is_image_name(name):
                if parts[-1] != LABELS:
                    rest[PurePosixPath(name).suffix.lower() or "without a suffix"] += 1
            elif name in taken:
                raise DistillkitError(f"{self.path} holds {shown(name)} twice: make it anew")
            else:
                _require_readable(member, f"{self.path}:{shown(name)}")
                taken[name] = member
        self.left_out = [
            *([f"{counted(len(hidden), 'hidden or system name')} (such as {shown(min(hidden))})"] if hidden else []),
            *([f"{counted(len(links), 'link')} (such as {shown(min(links))})"] if links else []),
            *others(rest),
        ]
        return sorted(taken.items())

    def _labels(self, member: zipfile.ZipInfo | None) -> bytes | None:
        if member is None:
            return None
        where, (base, an_image) = f"{self.path}:{shown(member.filename)}", MOST_LABEL_BYTES
        _require_readable(member, where)
        if member.file_size > base + an_image * len(self.names):
            raise DistillkitError(
                f"{where} claims {member.file_size:,} bytes, which is too much for the labels of {len(self.names):,} "
                "images"
            )
        return self._read(member, where, member.file_size)

    def _read(self, member: zipfile.ZipInfo, where: str, most: int) -> bytes:
        """At most so many bytes of a member; the whole of it is checked against its checksum.

        Raises:
            Damaged: when it is not what it claims.
        """
        start = member.header_offset
        head = self._bytes(start, 30)
        if len(head) != 30 or head[:4] != b"PK\x03\x04":
            raise Damaged(f"cannot read {where}: there is nothing at its place in the zip file")
        name_length, extra_length = struct.unpack_from("<HH", head, 26)
        start += 30 + name_length + extra_length
        wanted = min(most, member.file_size)
        try:
            if member.compress_type == zipfile.ZIP_STORED:
                data = self._bytes(start, wanted)
            else:
                # Deflating never makes much more of what it packs than that.
                packed = self._bytes(start, min(member.compress_size, wanted + wanted // 100 + 1024))
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, wanted) if wanted else b""
        except (OSError, zlib.error) as error:
            raise Damaged(f"cannot read {where}: {error}") from error
        if len(data) != wanted or (wanted == member.file_size and zlib.crc32(data) != member.CRC):
            raise Damaged(f"{where} is damaged (wrong checksum or length)")
        return data

    def _bytes(self, start: int, count: int) -> bytes:
        if start < 0 or start >= self._length:
            return b""
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), count, start)
        with self._lock:
            self._file.seek(start)
            return self._file.read(count)


def _name(member: zipfile.ZipInfo) -> str:
    """With slashes: old tools on Windows write backslashes."""
    return member.filename.replace("\\", "/")


def _require_readable(member: zipfile.ZipInfo, where: str) -> None:
    require_plain(member, where)
    if member.file_size > MOST_BYTES:
        raise DistillkitError(f"{where} claims {member.file_size:,} bytes, more than {MOST_BYTES:,}; refused")


def require_plain(member: zipfile.ZipInfo, where: str) -> None:
    """Refuse a member that is encrypted, or compressed by what grows without bound.

    Raises:
        DistillkitError: naming it.
    """
    if member.flag_bits & 1:
        raise DistillkitError(f"{where} is encrypted: write the zip file without a password")
    if member.compress_type not in METHODS:
        name = {zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "LZMA"}.get(
            member.compress_type, f"method {member.compress_type}"
        )
        raise DistillkitError(
            f"{where} is compressed by {name}, and only stored and deflated members are read: pack it again with zip"
        )
