"""What is noted beside noise-image pairs for people: whose they are, and which runs have read them."""

from __future__ import annotations

import logging
from pathlib import Path

from distillkit.contracts.teacher import Teacher
from distillkit.data.shards import LOCK
from distillkit.errors import DistillkitError
from distillkit.files import write_json
from distillkit.locks import held
from distillkit.reading import Unreadable, read_mapping

ABOUT, USED_BY = "about.json", "used-by.json"
MOST_RUNS = 1000

log = logging.getLogger(__name__)


def describe(folder: Path, teacher: Teacher) -> None:
    """Write what people call the teacher, which the pairs do not depend on; where it cannot be written it is left
    out."""
    if (folder / ABOUT).exists():
        return
    try:
        guide = {"guide": teacher.guide.title} if teacher.guide else {}
        write_json(folder / ABOUT, {"teacher": teacher.spec.name, "conditions": teacher.conditioner.summary(), **guide})
    except DistillkitError as error:
        log.info("%s", error)


def described(folder: Path, what: str = "teacher") -> str:
    """What people call the teacher of the pairs in a folder, or its "guide"; "" where that is not known."""
    try:
        return str(read_mapping(folder / ABOUT).get(what, ""))[:200]
    except Unreadable:
        return ""


def note_use(folder: Path, teacher: Teacher, run: Path) -> None:
    """Note that a run reads these pairs; where that cannot be written it is left out."""
    describe(folder, teacher)
    try:
        with held(folder / LOCK, lambda: None):
            known = used_by(folder)
            if (name := str(run.resolve())) not in known:
                write_json(folder / USED_BY, {"runs": [*known, name][-MOST_RUNS:]})
    except DistillkitError as error:
        log.info("the use of %s cannot be noted: %s", folder, error)


def used_by(folder: Path) -> list[str]:
    """The folders of the runs that have read the pairs in a folder."""
    try:
        runs = read_mapping(folder / USED_BY).get("runs", [])
    except Unreadable:
        return []
    return [str(run) for run in runs] if isinstance(runs, list) else []
