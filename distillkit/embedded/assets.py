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


@cache
def asset_path(name: str) -> Path:
    """The path of a shipped file, which is in the folder of its teacher, after checking it against its recorded sha256.

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
