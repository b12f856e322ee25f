"""The sets of noise-image pairs in the cache, for people."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distillkit.data.pair_notes import described, used_by
from distillkit.data.shards import identity_of
from distillkit.files import cache_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredSet:
    """A set of pairs in the cache.

    Args:
        teacher: what people call it; "" where that was not noted.
        solver, steps, guidance: of the pairs.
        guide: what people call the network that guided the teacher; "" for none.
        count: of pairs in shards whose files are there. bytes: of the files.
        used_by: folders of runs that have read them and are still there.
    """

    folder: Path
    teacher: str
    solver: str
    steps: int
    guidance: float
    count: int
    bytes: int
    used_by: Sequence[str]
    guide: str = ""


def list_pairs(root: str | Path | None = None) -> list[StoredSet]:
    """The sets of pairs in the cache, by their names; what `distillkit pairs list` shows.

    Args:
        root: a folder of such sets; the cache's by default.
    """
    above, found = Path(root) if root else cache_folder() / "pairs", []
    for folder in sorted(above.iterdir()) if above.is_dir() else []:
        identity = identity_of(folder) if folder.is_dir() else None
        files = [path.stat().st_size for path in folder.glob("shard-*.safetensors")]
        if identity is None:
            if files:
                log.warning(
                    "%s is left out: it holds %s shards, and its manifest.json is missing or damaged; `distillkit "
                    "pairs make` with the teacher and options of that set reads them again", folder, f"{len(files):,}",
                )  # fmt: skip
            continue
        try:
            steps, guidance = int(identity.get("steps", 0)), float(identity.get("guidance", 1))
            count = len(files) * int(identity.get("shard", 0))
        except (TypeError, ValueError):
            continue
        runs = [run for run in used_by(folder) if Path(run).is_dir()]
        name = described(folder) or folder.name.rpartition("-")[0]
        of_teacher = identity.get("teacher")
        guided = isinstance(of_teacher, dict) and "guide" in of_teacher
        guide = (described(folder, "guide") or "another network") if guided else ""
        solver = str(identity.get("solver", ""))[:40]
        found.append(StoredSet(folder, name, solver, steps, guidance, count, sum(files), runs, guide))
    return found
