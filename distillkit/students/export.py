"""Students for other libraries, and for the hub."""

from __future__ import annotations

import inspect
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from distillkit.errors import UsageError
from distillkit.files import is_occupied, sha256, write_bytes, write_json
from distillkit.reading import Unreadable, read_json, read_text
from distillkit.registry import blaming, registry
from distillkit.students.artifact import DESCRIPTION, Student
from distillkit.students.card import CARD, PICTURE, card, with_usage
from distillkit.students.lora_file import write_lora
from distillkit.students.own_pipeline import write_own_pipeline
from distillkit.students.plain_pipeline import parts_of, write_plain_pipeline

log = logging.getLogger(__name__)

OF_WEIGHTS = ("weights_sha256", "conditioner", "codec", "adapter")
"""Of a description: what an export may write otherwise than the student has it."""


def to_diffusers(student: Student, folder: Path, *, self_contained: bool = False) -> None:
    """A folder that diffusers loads: a plain pipeline where the student was made from one with text or latents, and a
    pipeline that the folder brings along for students of pixels.

    Args:
        self_contained: with copies of the parts that were not trained, which are named by where they are otherwise.

    Raises:
        UsageError: for a student that the format does not hold; says what is in the way.
    """
    student = student.merged()
    if parts_of(student):
        usage = write_plain_pipeline(student, folder, self_contained=self_contained)
    else:
        usage = write_own_pipeline(student, folder)
    write_bytes(folder / CARD, with_usage(_card(student), usage, library="diffusers").encode())


def to_diffusers_lora(student: Student, folder: Path, *, self_contained: bool = False) -> None:
    """A LoRA file that the teacher's pipeline loads by `load_lora_weights`, with the student's scheduler.

    Args:
        self_contained: with a copy of that pipeline.

    Raises:
        UsageError: for a student without adapters, or one that the format does not hold.
    """
    usage = write_lora(student, folder, self_contained=self_contained)
    write_bytes(folder / CARD, with_usage(_card(student), usage, library="diffusers").encode())


def _card(student: Student) -> str:
    """The student's own card, or one without figures where it has none, as a checkpoint's."""
    if own := _own(student, CARD):
        return read_text(own)
    return card(student.description)


def _own(student: Student, name: str) -> Path | None:
    """A file that lies beside a student; None where it is not there, or is a link to elsewhere: a folder that was
    downloaded must not publish what lies outside of it."""
    path = student.folder / name if student.folder else None
    if path is None or not path.is_file():
        return None
    if path.resolve().is_relative_to(_repository(path.parent.resolve())):
        return path
    log.warning("%s is a link out of its folder, and is left out of the export", path)
    return None


def _repository(folder: Path) -> Path:
    """The folder itself; of a snapshot in the hub's cache, whose files are links, that of its repository."""
    snapshots = folder.parent
    is_cached = snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--")
    return snapshots.parent / "blobs" if is_cached else folder


def export(student: Student, name: str, folder: Path, *, self_contained: bool = False) -> list[Path]:
    """Write a student in a format, with its card, whole or not at all; returns the files. A folder that already holds
    the same export is left as it is, so that what follows an export, such as an upload, can be repeated.

    Args:
        self_contained: with everything that the student needs, where the format leaves a choice.

    Raises:
        UsageError: for an unknown format, a student that it cannot hold, or a folder that holds something else.
        DistillkitError: when a plugin's exporter fails.
    """
    offer = registry().find("exporters", name)
    options: dict[str, Any] = {"self_contained": True} if self_contained else {}
    if self_contained and "self_contained" not in inspect.signature(offer.value).parameters:
        raise UsageError(
            f"the format {name} ({offer.origin}) leaves no choice of what is copied: drop --self-contained"
        )
    occupied = is_occupied(folder)
    if occupied and not _may_be(folder, student):
        raise UsageError(f"{folder} is not an empty folder; choose another --output-dir")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as aside:
        made = Path(aside) / "made"
        made.mkdir()
        with blaming(f"export to {name}", offer.origin, "failed"):
            offer.value(student, made, **options)
        _complete(made, student, name, offer.origin)
        if occupied:
            if not _alike(made, folder):
                raise UsageError(f"{folder} holds another export of this student; choose another --output-dir")
        else:
            if folder.exists():
                folder.rmdir()
            made.rename(folder)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _complete(made: Path, student: Student, name: str, origin: str) -> None:
    """Add what an exporter has not written itself: card, picture, description."""
    if not (made / CARD).exists():
        usage = f"Exported in the format `{name}` of {origin}; load it as that format's documentation says."
        write_bytes(made / CARD, with_usage(_card(student), usage, library=name).encode())
    if (picture := _own(student, PICTURE)) and not (made / PICTURE).exists():
        shutil.copyfile(picture, made / PICTURE)
    if not (made / DESCRIPTION).exists():
        write_json(made / DESCRIPTION, student.description.model_dump(mode="json"))


def _may_be(folder: Path, student: Student) -> bool:
    """Whether a folder says that it holds an export of this student."""
    ours = student.description.model_dump(mode="json")
    try:
        theirs = read_json(folder / DESCRIPTION) if folder.is_dir() else None
    except Unreadable:
        return False
    return isinstance(theirs, dict) and all(theirs.get(key) == ours[key] for key in ours if key not in OF_WEIGHTS)


def _alike(first: Path, second: Path) -> bool:
    """Whether two folders hold the same files."""
    names = [
        {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} for folder in (first, second)
    ]
    return names[0] == names[1] and all(sha256(first / name) == sha256(second / name) for name in names[0])
