"""Files that are whole or absent: atomic writes with retries, hashes, and the cache folder."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distillkit.errors import DistillkitError
from distillkit.reading import Missing, Unreadable, read_mapping
from distillkit.text import short

log = logging.getLogger(__name__)

RETRY_SECONDS = (0.1, 0.5, 2.0)


def cache_folder() -> Path:
    """Where downloads and noise-image pairs are shared between runs: `DISTILLKIT_CACHE`, or the user's cache."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("DISTILLKIT_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("distillkit", appauthor=False)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """One spelling for equal values: sorted keys, no spaces. What identities are hashed from."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def slug(text: str) -> str:
    """A file name of a text that came from anywhere: letters, numbers, dots and dashes, never a path or hidden."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:100] or "unnamed"


def retried(action: Callable[[], None], path: Path) -> None:
    """Run a write; try again after transient errors, and say what is missing when it stays impossible.

    Raises:
        DistillkitError: naming the path, the reason and the free space.
    """
    for pause in (*RETRY_SECONDS, None):
        try:
            return action()
        except OSError as error:
            if pause is None or error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                free = shutil.disk_usage(existing_parent(path)).free
                raise DistillkitError(
                    f"cannot write {path}: {error.strerror or error} ({free / 2**20:,.0f} MiB free). "
                    "Nothing that was complete is lost; make room or choose another --output-dir, then --resume."
                ) from error
            log.warning("writing %s failed (%s); trying again in %g s", path, error.strerror or error, pause)
            time.sleep(pause)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to start what the disk cannot hold.

    Raises:
        DistillkitError: naming the needed and the free space.
    """
    free = shutil.disk_usage(existing_parent(folder)).free
    if free < needed:
        raise DistillkitError(
            f"{what} in {folder} need about {needed / 2**20:,.0f} MiB and {free / 2**20:,.0f} MiB are free; "
            "make room or choose another --output-dir"
        )


def existing_parent(path: Path) -> Path:
    """The nearest existing folder at or above `path`."""
    while not path.exists():
        path = path.parent
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to; flushed to the disk and renamed to `path` at the end, removed after an error.

    Readers see the old file or the new one, never a torn one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write the whole file or nothing of it, trying again after transient errors."""

    def write() -> None:
        with replacing(path) as aside:
            aside.write_bytes(data)

    retried(write, path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_recorded(path: Path, kind: type[Any]) -> dict[str, Any]:
    """What a lock file records, by name, each of one kind; nothing where there is no such file.

    Raises:
        DistillkitError: when the file is damaged.
    """
    try:
        recorded = read_mapping(path)
        if strange := [name for name, value in recorded.items() if not isinstance(value, kind)]:
            raise Unreadable(f"{path}: the entry {short(strange[0])} is malformed")
        return recorded
    except Missing:
        return {}
    except Unreadable as error:
        raise DistillkitError(f"cannot read the recorded hashes: {error}; repair or remove it") from error


def sync_folder(folder: Path) -> None:
    """Make a rename within `folder` survive a power loss (POSIX; Windows needs no such call)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
