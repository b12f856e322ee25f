"""Webdataset tar files as streams: the members of a sample lie together, and share a name up to its first dot."""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from torch import Tensor

from distillkit.data.captions import LARGEST, decoded
from distillkit.data.decoding import Damaged, is_image_name
from distillkit.data.files import HEAD, MOST_BYTES
from distillkit.data.labels import shown
from distillkit.data.member_arrays import ARRAYS, PICKLES, arrays_in
from distillkit.data.prompt_files import COLUMNS
from distillkit.data.remote import RemoteFile
from distillkit.data.stream_index import NO_LABEL, FileIndex, IndexBuilder, Integers, Sample, Wanted
from distillkit.data.tars import MOST_MEMBERS, TEXTS, split_name
from distillkit.errors import DistillkitError, UsageError
from distillkit.reading import parse_json

BLOCK = 512
"""Bytes of a tar file's header; members are filled up to it."""
MOST_SAMPLE = 2 * MOST_BYTES
FAILURES = (tarfile.TarError, OSError, ValueError, EOFError, OverflowError)


class TarFormat:
    """Tar files as `Format` reads them."""

    name = "tar"

    def index(self, file: RemoteFile, wanted: Wanted) -> FileIndex:
        builder, samples = IndexBuilder(), _Samples(file)
        try:
            with tarfile.open(fileobj=file.stream(), mode="r:") as archive:
                for member in _members(archive, file):
                    if samples.begins(member):
                        samples.close_into(builder)
                    samples.take(member, archive)
            samples.close_into(builder)
        except FAILURES as error:
            raise UsageError(
                f"{file.address} is not a readable tar file (compressed ones are unpacked first): {str(error)[:200]}"
            ) from error
        return builder.built(zlib.crc32(file.read(0, min(HEAD, file.size))))

    def block(self, file: RemoteFile, places: Integers, wanted: Wanted) -> list[Sample]:
        start, end = int(places[0][0]), int(places[-1][1])
        data = memoryview(file.read(start, end))
        return [_TarSample(file, data[int(first) - start : int(last) - start], int(first)) for first, last in places]


def _members(archive: tarfile.TarFile, file: RemoteFile) -> Iterator[tarfile.TarInfo]:
    """The members that are data; none is kept.

    Raises:
        DistillkitError: for one that cannot be read straight, or too many.
    """
    count = 0
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]
        count += 1
        if count > MOST_MEMBERS:
            raise DistillkitError(f"{file.address} holds more than {MOST_MEMBERS:,} members")
        if not member.isreg() or any(part.startswith(".") for part in PurePosixPath(member.name).parts):
            continue
        if member.issparse() or member.size > MOST_BYTES:
            raise DistillkitError(
                f"{file.address}:{shown(member.name)} is sparse or has more than {MOST_BYTES:,} bytes; refused"
            )
        if member.offset_data + member.size > file.size:
            raise DistillkitError(
                f"{file.address}:{shown(member.name)}: the tar file ends before it does; copy it again"
            )
        yield member


class _Samples:
    """The sample that is being read of a tar file."""

    def __init__(self, file: RemoteFile) -> None:
        self.file, self.seen = file, set[str]()
        self._clear()

    def _clear(self) -> None:
        self.name: str | None = None
        self.start = self.end = self.arrays = 0
        self.text = self.described = self.image = ""
        self.label = NO_LABEL
        self.endings: list[str] = []

    def begins(self, member: tarfile.TarInfo) -> bool:
        """Whether this member is of another sample than those before it.

        Raises:
            UsageError: where it is of an earlier one.
        """
        name = split_name(member.name)[0]
        if name == self.name:
            return False
        if name in self.seen:
            raise UsageError(
                f"{self.file.address}: the members of the sample {shown(name)} do not lie together: pack it with its "
                "members in order of their names (tar --sort=name)"
            )
        return True

    def close_into(self, builder: IndexBuilder) -> None:
        """Note the sample that has been read, and begin another."""
        if self.name is not None and (self.image or self.arrays):
            text = self.text or self.described
            builder.add((self.start, self.end), text, self.label, image=bool(self.image), arrays=bool(self.arrays))
        builder.names.update(self.endings)
        self._clear()

    def take(self, member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
        name, ending = split_name(member.name)
        if self.name is None:
            self.name, self.start = name, member.offset
            self.seen.add(name)
        self.end = member.offset_data + -(-member.size // BLOCK) * BLOCK
        if self.end - self.start > MOST_SAMPLE:
            raise DistillkitError(f"{self.file.address}: the sample {shown(name)} has more than {MOST_SAMPLE:,} bytes")
        self.endings.append(ending)
        where = f"{self.file.address}:{shown(member.name)}"
        if ending in PICKLES:
            raise UsageError(
                f"{where} is a pickle, which could run code and is not read: write it as .npy, .npz or .safetensors"
            )
        if is_image_name(member.name):
            if self.image:
                raise UsageError(f"{where}: the sample has several images; leave one in each")
            self.image = member.name
        elif ending in ARRAYS:
            self.arrays += 1
        elif ending in TEXTS:
            self.text = decoded(_content(archive, member), where)
        elif ending == ".json":
            self.described = _described(_content(archive, member), where)
        elif ending == ".cls":
            self.label = _class(_content(archive, member), where)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read(LARGEST + 1) if file else b""


def _described(data: bytes, where: str) -> str:
    """The text of a usual name in a sample's .json."""
    found = parse_json(data, where)
    if not isinstance(found, dict):
        return ""
    named = {str(key).lower(): value for key, value in found.items()}
    text = next((named[name] for name in COLUMNS if isinstance(named.get(name), str)), "")
    return " ".join(text.split())


def _class(data: bytes, where: str) -> int:
    text = data[:64].strip()
    if not re.fullmatch(rb"\d{1,6}", text):
        raise DistillkitError(f"{where} is {ascii(text.decode('latin-1'))[:40]}, not a class number from 0")
    return int(text)


class _TarSample:
    """The bytes of a sample's members, as they lie in the file."""

    def __init__(self, file: RemoteFile, data: memoryview, start: int) -> None:
        self._file, self._data, self._start = file, data, start

    def image(self, most: int) -> bytes:
        for name, content in self._members():
            if is_image_name(name):
                return bytes(content[:most])
        raise Damaged(f"{self._where()}: the sample holds no image any more: has the file changed?")

    def arrays(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        found: dict[str, Tensor] = {}
        facts: dict[str, str] = {}
        for name, content in self._members():
            ending = split_name(name)[1]
            if ending in ARRAYS:
                within = name.rpartition("/")[2].partition(".")[2].lower().removesuffix(ending).rstrip(".")
                where = f"{self._file.address}:{shown(name)}"
                arrays, recorded = arrays_in(content, ending, within, where)
                if twice := found.keys() & arrays.keys():
                    raise UsageError(
                        f"{where}: the sample has two arrays called {shown(min(twice)) or 'nothing'}; give them names"
                    )
                found |= arrays
                facts |= recorded
        return found, facts

    def _members(self) -> Iterator[tuple[str, memoryview]]:
        try:
            with tarfile.open(fileobj=io.BytesIO(self._data), mode="r:") as archive:
                for member in archive:
                    content = self._data[member.offset_data : member.offset_data + member.size]
                    if member.isreg() and len(content) == member.size:
                        yield member.name, content
        except FAILURES as error:
            raise DistillkitError(
                f"{self._where()}: there is no sample any more ({str(error)[:100]}): the file has changed since it was "
                "first read; start again"
            ) from error

    def _where(self) -> str:
        return f"{self._file.address}, byte {self._start:,}"
