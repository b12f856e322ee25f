"""One door to every teacher: a catalogue name, a folder, a file of weights, or a hub repository."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from distillkit.embedded.assets import asset_path
from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import sha256
from distillkit.progress import Reporter, reporter_for
from distillkit.registry import blaming, registry, unknown
from distillkit.teachers import diffusers_folder, fetch
from distillkit.models.edm.catalog import CATALOG, DIGITS, MIXTURE, catalog_name
from distillkit.models.store.convert import convert
from distillkit.models.store.folder import SPEC, WEIGHTS, is_teacher_folder, read_spec, read_teacher
from distillkit.embedded.mixture.teacher import MixtureTeacher

HUB = "hf:"


def load_teacher(name: str, reporter: Reporter | None = None, should_stop: Callable[[], int] = lambda: 0) -> Teacher:
    """A teacher by catalogue name or alias, `hf:ORG/REPO[@REVISION]`, folder or file.

    Folders hold `teacher.json` and `model.safetensors`, or a diffusers model; files are EDM pickles and `torch.save`
    files, which are converted once and never executed.

    Args:
        name: what to load.
        reporter: where downloads are reported; standard output by default.
        should_stop: a signal's number once one has come, else 0.

    Raises:
        UsageError: for a name that is none of these.
        DistillkitError: when a file is damaged, refused or cannot be had.
        Interrupted: after a signal during a download.
    """
    reporter = reporter or reporter_for()
    if known := catalog_name(name):
        if known in (DIGITS.name, MIXTURE.name):
            shipped = read_teacher(asset_path(f"{known}-teacher.json"), asset_path(f"{known}-teacher.safetensors"))
            return MixtureTeacher(shipped.denoiser, shipped.spec) if known == MIXTURE.name else shipped
        return _from_folder(fetch.fetch(CATALOG[known], reporter, should_stop))
    if name in registry().teachers:
        return _from_plugin(name)
    if name.startswith(HUB):
        return _from_folder(diffusers_folder.snapshot(name.removeprefix(HUB)))
    path = Path(name).expanduser()
    if path.exists():
        return _from_folder(converted(path, reporter) if path.is_file() else path)
    if reason := registry().refused.get(("teachers", name)):
        raise UsageError(reason)
    known_names = [*CATALOG, *registry().teachers]
    raise UsageError(
        unknown("teacher", name, known_names, "distillkit teachers") + " A folder, a file or hf:ORG/REPO works too."
    )


def spec_of(name: str) -> TeacherSpec:
    """The facts of a catalogued teacher or a teacher folder, without its weights.

    Raises:
        UsageError: for a name that is neither.
    """
    if known := catalog_name(name):
        return CATALOG[known].spec
    path = Path(name).expanduser() / SPEC
    if path.is_file():
        return read_spec(path)
    raise UsageError(unknown("teacher", name, CATALOG, "distillkit teachers") + " A teacher folder works too.")


def converted(path: Path, reporter: Reporter) -> Path:
    """The cached teacher folder made from this file's contents."""
    folder = fetch.teachers_folder() / f"{path.stem}-{sha256(path)[:16]}"
    if not is_teacher_folder(folder):
        reporter.say(f"reading {path} (nothing in it is executed)")
        known = catalog_name(path.stem)
        licence = CATALOG[known].spec.licence if known else ""
        convert(path, folder, name=known or path.stem, licence=licence)
    return folder


def _from_plugin(name: str) -> Teacher:
    installed = registry().teachers[name]
    with blaming(f"teacher {name}", installed.origin, "cannot be loaded"):
        teacher = installed.value()
    if not isinstance(teacher, Teacher):
        raise DistillkitError(f"teacher {name} ({installed.origin}) is a {type(teacher).__name__}, not a Teacher")
    return teacher


def _from_folder(folder: Path) -> Teacher:
    if is_teacher_folder(folder):
        return read_teacher(folder / SPEC, folder / WEIGHTS)
    if diffusers_folder.is_diffusers_folder(folder):
        return diffusers_folder.read_teacher(folder)
    missing = next((file for file in (SPEC, WEIGHTS) if not (folder / file).is_file()), SPEC)
    raise UsageError(f"{folder} is not a teacher folder: it has no {missing}, and no model of diffusers either")


def known_as(name: str) -> str:
    """The name under which presets know a teacher: the catalogue's own, or what a folder's teacher.json says."""
    if known := catalog_name(name):
        return known
    path = Path(name).expanduser()
    if path.is_file():
        return catalog_name(path.stem) or path.stem
    try:
        return str(json.loads((path / SPEC).read_text(encoding="utf-8"))["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return name
