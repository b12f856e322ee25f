"""Files shipped in the package: the embedded teachers, their data, feature extractor and reference statistics."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from distillkit.errors import DistillkitError
from distillkit.files import sha256

FOLDER = Path(__file__).parent
HASHES, RECORDS = "sha256.json", "records.json"


@cache
def asset_hashes() -> dict[str, str]:
    """File name -> recorded sha256."""
    return dict(json.loads((FOLDER / HASHES).read_text()))


def shipped_files() -> dict[str, Path]:
    """All weights, tables and texts that ship, by their names in the record of hashes.

    A file in a teacher's folder has its own name; one below that is named by its path, as "shapes/pipeline/vae/..." is.
    """
    found = sorted(p for p in FOLDER.glob("*/**/*") if p.suffix in (".safetensors", ".json", ".txt") and p.is_file())
    relative = {path: path.relative_to(FOLDER) for path in found}
    return {(name.name if len(name.parts) == 2 else name.as_posix()): path for path, name in relative.items()}


@cache
def asset_folder(name: str) -> Path:
    """The path of a shipped folder such as "shapes/pipeline", after checking each of its files.

    Raises:
        DistillkitError: when a file is missing or altered.
    """
    for each in asset_hashes():
        if each.startswith(f"{name}/"):
            asset_path(each)
    return FOLDER / name


@cache
def asset_path(name: str) -> Path:
    """The path of a shipped file, by its name in `shipped_files`, after checking it against its recorded sha256.

    Raises:
        DistillkitError: when the file is missing or altered.
    """
    path = next(FOLDER.glob(f"*/{name}"), FOLDER / name)
    if not path.is_file() or sha256(path) != asset_hashes().get(name):
        raise DistillkitError(f"the package file {path} is missing or altered; reinstall distillkit")
    return path


@cache
def shipped_records() -> dict[str, Any]:
    """The embedded teachers' own records, by the hash of all that they depend on."""
    path = FOLDER / RECORDS
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
