"""Teachers by name or folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from distillkit.assets import asset_path
from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import sha256
from distillkit.networks.build import build_denoiser
from distillkit.registry import unknown

WEIGHTS, SPEC = "model.safetensors", "teacher.json"


@dataclass(frozen=True)
class CatalogEntry:
    """A teacher that can be asked for by name."""

    name: str
    title: str
    licence: str
    source: str
    load: Callable[[], Teacher]


def load_digits_teacher() -> Teacher:
    """The embedded teacher."""
    return _load(asset_path("digits-teacher.json"), asset_path("digits-teacher.safetensors"))


CATALOG: Mapping[str, CatalogEntry] = {
    entry.name: entry
    for entry in (
        CatalogEntry(
            name="digits",
            title="handwritten digits, 8 x 8, ten classes; inside the package, runs on a laptop",
            licence="Apache-2.0 (weights); CC BY 4.0 (data)",
            source="`distillkit teachers train digits`",
            load=load_digits_teacher,
        ),
    )
}


def load_teacher(name: str) -> Teacher:
    """A teacher from the catalogue, or from a folder with `teacher.json` and `model.safetensors`.

    Raises:
        UsageError: for a name that is neither.
        DistillkitError: when the files do not fit together.
    """
    if name in CATALOG:
        return CATALOG[name].load()
    folder = Path(name).expanduser()
    if folder.is_dir():
        for file in (SPEC, WEIGHTS):
            if not (folder / file).is_file():
                raise UsageError(f"{folder} is not a teacher folder: it has no {file}")
        return _load(folder / SPEC, folder / WEIGHTS)
    raise UsageError(unknown("teacher", name, CATALOG, "distillkit teachers") + " A folder path works too.")


def known_as(name: str) -> str:
    """The name under which presets know a teacher: a folder's is the one in its teacher.json."""
    spec = Path(name).expanduser() / SPEC
    if name in CATALOG or not spec.is_file():
        return name
    try:
        return str(json.loads(spec.read_text(encoding="utf-8"))["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return name


def _load(spec_path: Path, weights_path: Path) -> Teacher:
    try:
        spec = TeacherSpec.model_validate(json.loads(spec_path.read_text(encoding="utf-8")))
        state = load_file(weights_path)
    except (ValidationError, ValueError, OSError, SafetensorError) as error:
        raise DistillkitError(f"cannot read the teacher in {spec_path.parent}: {str(error).splitlines()[0]}") from error
    if sha256(weights_path) != spec.weights_sha256:
        raise DistillkitError(f"{weights_path} does not match the sha256 recorded in {spec_path.name}")
    denoiser = build_denoiser(spec.network)
    try:
        denoiser.load_state_dict(state)
    except RuntimeError as error:
        raise DistillkitError(f"{weights_path} does not fit its description: {error}") from error
    return Teacher(denoiser, spec)
