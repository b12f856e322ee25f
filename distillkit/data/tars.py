"""Images in tar files as webdataset packs them: the members of one sample share a name up to its first dot."""

from __future__ import annotations

import os
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from distillkit.data.captions import LARGEST, decoded
from distillkit.data.decoding import Damaged, is_image_name
from distillkit.data.files import MOST_BYTES, ImageFiles, fingerprint
from distillkit.data.folders import others
from distillkit.data.labels import check_labels, shown
from distillkit.data.prompt_files import COLUMNS
from distillkit.data.prompts import kept_texts
from distillkit.errors import DistillkitError, UsageError
from distillkit.reading import parse_json

TEXTS = (".txt", ".text", ".caption")
MOST_MEMBERS = 10**8

Place = tuple[int, int, int]
"""Number of the tar file, and where a member begins in it and how long it is."""


class TarImages(ImageFiles):
    """Images in one tar file or several; members are read straight from their places, nothing is unpacked.

    A sample's caption is its .txt, or a text of a usual name in its .json; its class is the number in its .cls.

    Raises:
        UsageError: when one is compressed or no tar file.
        DistillkitError: for members that are sparse or very large, or labels that are none.
    """

    def __init__(self, paths: Sequence[Path], name: str) -> None:
        self.paths, self._files = list(paths), [self._opened(path) for path in paths]
        images: list[tuple[str, Place]] = []
        self._texts: dict[str, Place] = {}
        self._described: dict[str, Place] = {}
        classes: dict[str, Place] = {}
        rest: Counter[str] = Counter()
        for number, path in enumerate(self.paths):
            for member, place in self._members(number, path):
                # Two samples of one name may lie in two files.
                sample, ending = split_name(member)
                key = f"{number}/{sample}"
                if is_image_name(member):
                    images.append((f"{number}/{member}", place))
                elif ending in TEXTS:
                    self._texts[key] = place
                elif ending == ".json":
                    self._described[key] = place
                elif ending == ".cls":
                    classes[key] = place
                else:
                    rest[ending or "without a suffix"] += 1
        self._images, self._members_of = [place for _, place in images], [member for member, _ in images]
        self._samples = [
            f"{member.partition('/')[0]}/{split_name(member.partition('/')[2])[0]}" for member, _ in images
        ]
        self.names = [f"{self.paths[place[0]].name}:{member.partition('/')[2]}" for member, place in images]
        if len(set(self._samples)) < len(self._samples):
            seen = Counter(self._samples)
            twice = next(name for name, s in zip(self.names, self._samples, strict=True) if seen[s] > 1)
            raise UsageError(f"{name}: the sample of {shown(twice)} has several images; leave one in each")
        self.left_out = others(rest)
        self.labels, self.notes = None, ["no classes"]
        if classes:
            if missing := [name for name, s in zip(self.names, self._samples, strict=True) if s not in classes]:
                raise DistillkitError(f"{name}: {shown(missing[0])} has no .cls and others have")
            numbers = [self._class(classes[sample]) for sample in self._samples]
            self.labels, self.notes = check_labels(numbers, self.names, name), []
        lengths = [os.fstat(file.fileno()).st_size for file in self._files]
        checks = [[shown(name), place[1], place[2]] for name, place in zip(self.names, self._images, strict=True)]
        self.fingerprint = fingerprint([lengths, checks], self.labels)

    @cached_property
    def captions(self) -> Sequence[str] | None:  # type: ignore[override]
        if not self._texts and not self._described:
            return None
        texts = kept_texts(self._caption(sample) for sample in self._samples)
        return texts if any(texts) else None

    def read(self, index: int, most: int = MOST_BYTES) -> bytes:
        place = self._images[index]
        data = self._bytes(place, most)
        if len(data) != min(place[2], most):
            raise Damaged(f"cannot read {self.where(index)}: the tar file ends before it does")
        return data

    def where(self, index: int) -> str:
        return f"{self.paths[self._images[index][0]]}:{shown(self.names[index].partition(':')[2])}"

    def _caption(self, sample: str) -> str:
        if sample in self._texts:
            return decoded(self._bytes(self._texts[sample], LARGEST + 1), f"of the sample {sample}")
        if sample in self._described:
            where = f"the .json of the sample {sample}"
            found = parse_json(self._bytes(self._described[sample], LARGEST + 1), where)
            if isinstance(found, dict):
                named = {str(key).lower(): value for key, value in found.items()}
                text = next((named[name] for name in COLUMNS if isinstance(named.get(name), str)), "")
                return " ".join(text.split())
        return ""

    def _class(self, place: Place) -> int:
        text = self._bytes(place, 64).strip()
        return int(text) if re.fullmatch(rb"\d{1,7}", text) else -1

    def _bytes(self, place: Place, most: int) -> bytes:
        number, start, length = place
        return os.pread(self._files[number].fileno(), min(length, most), start)

    @staticmethod
    def _opened(path: Path) -> BinaryIO:
        try:
            return path.open("rb")
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error

    def _members(self, number: int, path: Path) -> list[tuple[str, Place]]:
        """The names and places of a file's members.

        Raises:
            UsageError: when it is no plain tar file.
            DistillkitError: for a member that cannot be read straight.
        """
        found: list[tuple[str, Place]] = []
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if not member.isreg() or any(part.startswith(".") for part in PurePosixPath(member.name).parts):
                        continue
                    if member.issparse() or member.size > MOST_BYTES:
                        raise DistillkitError(
                            f"{path}:{shown(member.name)} is sparse or has more than {MOST_BYTES:,} bytes; refused"
                        )
                    found.append((member.name, (number, member.offset_data, member.size)))
                    if len(found) > MOST_MEMBERS:
                        raise DistillkitError(f"{path} holds more than {MOST_MEMBERS:,} members")
        except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
            raise UsageError(
                f"{path} is not a readable tar file (compressed ones are unpacked first): {str(error)[:200]}"
            ) from error
        return found


def hold_arrays(path: Path) -> bool:
    """Whether a tar file's first samples are arrays and no images."""
    from distillkit.data.member_arrays import ARRAYS, PICKLES

    try:
        with tarfile.open(path, "r:") as archive:
            names = [member.name for member, _ in zip(archive, range(64), strict=False) if member.isreg()]
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError):
        return False
    return not any(map(is_image_name, names)) and any(split_name(name)[1] in ARRAYS + PICKLES for name in names)


def tar_files_in(folder: Path) -> list[Path]:
    """The tar files of a folder that holds tar files and no images, sorted; nothing for any other."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    tars = [name for name in names if name.lower().endswith(".tar")]
    return [] if any(is_image_name(name) for name in names) else [folder / name for name in tars]


def split_name(member: str) -> tuple[str, str]:
    """("a/0001", ".txt") of "a/0001.txt": what a sample is called, and what the member is."""
    above, slash, last = member.rpartition("/")
    stem, dot, ending = last.partition(".")
    return f"{above}{slash}{stem}", f".{ending.rpartition('.')[2].lower()}" if dot else ""
