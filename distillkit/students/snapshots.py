"""Snapshots of averages in a run's folder `snapshots/`: what there is, and their weights, read when they are needed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from distillkit.errors import DistillkitError, UsageError
from distillkit.power_ema import LARGEST, Profile
from distillkit.reading import Unreadable, validated
from distillkit.students.checkpoints import STATE, held_weights, read_state
from distillkit.tensors import Stored

FOLDER = "snapshots"


class _Values(BaseModel):
    """What state.json of a snapshot says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int = Field(ge=1, le=2**53)
    seen: int = Field(ge=1, le=2**53)
    since: int = Field(ge=0, le=2**53)
    averages: dict[str, float] = Field(min_length=1, max_length=100)
    student: dict[str, Any] | None = None
    teacher: dict[str, Any] | None = None


@dataclass(frozen=True)
class KeptAverage:
    """An average that was kept.

    Args:
        images: of the training when it was. profile: over the images since it began.
        since: images of the training before these: averages with another number are of other trainings.
        weights: by the names of the denoiser. origin: for people.
    """

    images: int
    profile: Profile
    since: int
    weights: Mapping[str, Stored]
    origin: str


@dataclass(frozen=True)
class KeptAverages:
    """All that a run has kept.

    Args:
        student, teacher: the description of what was trained, as the newest snapshot has it: one of the two.
    """

    averages: tuple[KeptAverage, ...]
    student: dict[str, Any] | None
    teacher: dict[str, Any] | None


def time_of(images: Collection[int], at: int | None, where: str) -> int:
    """The images of the training at whose time an average is to be made: `at`, or those of the last that was kept.

    Raises:
        UsageError: where none was kept then; names the nearest.
    """
    if not images:
        raise UsageError(f"{where} holds no averages: a training keeps them with --ema-sigmas 0.05,0.10")
    if at is None or at in images:
        return max(images) if at is None else at
    near = sorted(sorted(set(images), key=lambda kept: abs(kept - at))[:5])
    raise UsageError(f"--at {at:,}: no averages were kept then in {where}; the nearest: {', '.join(map(str, near))}")


def step_of(path: Path) -> int | None:
    """The step of a snapshot's folder; None for anything else."""
    number = path.name.removeprefix("step-")
    return int(number) if path.name.startswith("step-") and number.isdecimal() else None


def kept_averages(folder: Path, at: int | None = None) -> KeptAverages:
    """The averages in a folder of snapshots, up to those at `at` images of the training; every file's hash is verified.

    Raises:
        UsageError: where none was kept at `at` images, or none at all.
        DistillkitError: when one is missing, damaged or altered.
    """
    read = []
    for path in sorted(path for path in folder.iterdir() if step_of(path) is not None):
        with _named(path):
            state = read_state(path / STATE)
            if state.seal is None:
                raise Unreadable(f"{path / STATE} has no recorded hash of itself")
            read.append((path, state, validated(_Values, state.values, f"values in {path / STATE}")))
    last = time_of([values.images for *_, values in read], at, str(folder))
    found: list[KeptAverage] = []
    student = teacher = None
    for path, state, values in (one for one in read if one[2].images <= last):
        student, teacher = values.student, values.teacher
        for name, sigma in sorted(values.averages.items()):
            with _named(path):
                if not 0 < sigma <= LARGEST:
                    raise Unreadable(f"cannot read {path / STATE}: values.averages.{name}: {sigma:g} is no width")
                weights, _ = held_weights(path, name, state)
            profile = Profile(values.seen, sigma)
            found.append(KeptAverage(values.images, profile, values.since, weights, str(path)))
    return KeptAverages(tuple(found), student, teacher)


@contextmanager
def _named(snapshot: Path) -> Iterator[None]:
    """What is wrong with a snapshot is said with the way to do without it."""
    try:
        yield
    except DistillkitError as error:
        raise type(error)(f"{error}. Move {snapshot} away to use the other snapshots without it") from error
