"""Averages in files of other programs: networks that are named by thousands of images and relative width."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distillkit.contracts.teacher import TeacherSpec
from distillkit.errors import DistillkitError, UsageError
from distillkit.models.original import Unsettled
from distillkit.models.store.convert import convert
from distillkit.models.store.folder import WEIGHTS
from distillkit.models.store.resolve import known_spec
from distillkit.pieces import held_in
from distillkit.power_ema import LARGEST, Profile
from distillkit.students.snapshots import KeptAverage, KeptAverages, time_of

NAMED = re.compile(r"(?P<name>.+)-(?P<thousands>\d{1,12})-(?P<width>0\.\d{1,9})\.(pkl|pt|pth|bin|safetensors)")
EXAMPLE = "network-snapshot-0008388-0.050.pkl"
COUNTED = 1024
"""Trainings of EDM2 count images in multiples of it, and name files by whole thousands."""


@dataclass(frozen=True)
class _Named:
    """A file whose name says of what it is."""

    path: Path
    name: str
    images: int
    sigma_rel: float


def is_average(path: Path) -> bool:
    """Whether a file is named as an average."""
    return path.is_file() and NAMED.fullmatch(path.name) is not None


def averages_in_files(
    paths: Sequence[Path], place: Path, *, like: str | None, at: int | None, say: Callable[[str], None]
) -> KeptAverages:
    """The averages in files, each of which is read once and converted, one network at a time in memory.

    Args:
        paths: files, or one folder of them.
        place: folder for what they are converted to.
        like: whose network they hold, where they do not say.
        at: up to those at so many images of the training; thousands of images suffice, as the files' names have them.

    Raises:
        UsageError: for files that are not named so, of several trainings, or none at `at` images.
        DistillkitError: for a file that is refused, damaged or of another network than the first.
    """
    named = sorted((_read(path) for path in _files(paths)), key=lambda one: (one.images, one.sigma_rel))
    names = sorted({one.name for one in named})
    if len(names) > 1:
        raise UsageError(f"files of several trainings lie there, named {', '.join(names[:4])}: name those of one alone")
    times = {one.images for one in named}
    thousands = {images // 1000: images for images in times}
    last = time_of(times, thousands.get(at // 1000, at) if at is not None else None, str(paths[0]))
    known = known_spec(like, "--like") if like else None
    first: TeacherSpec | None = None
    found: list[KeptAverage] = []
    for one in (one for one in named if one.images <= last):
        say(f"reading {one.path} (nothing in it is executed)")
        folder = place / str(len(found))
        # What is assumed of the first is assumed of all, which must be of the same network.
        try:
            spec = convert(one.path, folder, name=one.name, like=known, say=(lambda text: None) if first else say)
        except Unsettled as error:
            raise Unsettled(f"{error}; then name the folder that it makes by --like") from error
        if first is not None and (spec.network, spec.shape) != (first.network, first.shape):
            raise DistillkitError(f"{one.path} is of another network than {found[0].origin}")
        first = first or spec
        weights = held_in([folder / WEIGHTS])
        found.append(KeptAverage(one.images, Profile(one.images, one.sigma_rel), 0, weights, str(one.path)))
    assert first is not None
    source = f"files {names[0]}-*, the first with {first.source.partition('(')[2].removesuffix(')')}"
    teacher = first.model_copy(update={"source": source, "weights_sha256": ""})
    return KeptAverages(tuple(found), None, teacher.model_dump(mode="json"))


def _files(paths: Sequence[Path]) -> list[Path]:
    if len(paths) == 1 and paths[0].is_dir():
        if found := [path for path in paths[0].iterdir() if is_average(path)]:
            return found
        raise UsageError(
            f"{paths[0]} is neither a run that has kept averages (--ema-sigmas) nor a folder of files such as {EXAMPLE}"
        )
    if absent := [path for path in paths if not path.is_file()]:
        raise UsageError(f"no file at {absent[0]}; name one run, one folder of averages, or files such as {EXAMPLE}")
    return list(paths)


def _read(path: Path) -> _Named:
    """What the name of a file says.

    Raises:
        UsageError: where it says nothing, or a width that cannot be.
    """
    found = NAMED.fullmatch(path.name)
    if found is None:
        raise UsageError(f"{path}: its name does not say of which average it is, as that of {EXAMPLE} does")
    width, thousands = float(found["width"]), int(found["thousands"])
    if not 0 < width < LARGEST or not thousands:
        raise UsageError(f"{path}: an average of sigma_rel {width:g} at {thousands:,} thousand images cannot be")
    images = -(-thousands * 1000 // COUNTED) * COUNTED
    # The whole thousands of a multiple are those of the name, where the training counted so.
    return _Named(path, found["name"], images if images // 1000 == thousands else thousands * 1000, width)
