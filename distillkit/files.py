"""Files that are whole or absent: atomic writes with retries, hashes, and the cache folder."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distillkit.errors import DistillkitError, UsageError
from distillkit.reading import Missing, Unreadable, read_mapping
from distillkit.text import short

log = logging.getLogger(__name__)

RETRY_SECONDS = (0.1, 0.5, 2.0)

PASSING = frozenset(
    {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.ESTALE,
     errno.EMFILE, errno.ENFILE}
)  # fmt: skip
"""Errors of a write that may be gone at the next try; of all others the cause is named at once."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
IN_THE_WAY = frozenset({errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY})
FORBIDDEN = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
"""Of a write into a folder that this user may only read."""


class WriteError(DistillkitError):
    """A file could not be written.

    Attributes:
        read_only: whether the place is one that this user may only read.
    """

    def __init__(self, message: str, *, read_only: bool = False) -> None:
        super().__init__(message)
        self.read_only = read_only


def _mode() -> int:
    """Of a new file, as this process' mask has it; asking for the mask sets it."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


MODE = _mode()


def _machine() -> str:
    """Of the processes among which numbers are not given twice: this machine's, or this container's."""
    namespace = ""
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").stat().st_ino)
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


MACHINE = _machine()


def unwritable(folder: Path) -> str:
    """Why nothing can be written into a folder, which is made if it is not there; empty where it can."""
    probe = aside_of(folder / "probe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""


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
    """Run a write; try again after errors that may pass, and say what is missing when it stays impossible.

    Raises:
        WriteError: naming the path, the reason and what to do.
    """
    for pause in (*RETRY_SECONDS, None):
        try:
            return action()
        except OSError as error:
            passing = error.errno in PASSING or (error.errno == errno.ENOENT and path.parent.is_dir())
            if pause is None or not passing:
                raise write_error(error, path) from error
            log.warning("writing %s failed (%s); trying again in %g s", path, error.strerror or error, pause)
            time.sleep(pause)


def write_error(error: OSError, path: Path) -> WriteError:
    """A write's failure for people: what could not be written, why, and what to do."""
    reason = error.strerror or str(error)
    if error.errno in IN_THE_WAY:
        return WriteError(f"cannot write {path}: {_in_the_way(path) or reason}. Move it away and try again.")
    if error.errno in FORBIDDEN:
        return WriteError(f"cannot write {path}: {reason}; this user may not write there", read_only=True)
    try:
        free = f" ({shutil.disk_usage(existing_parent(path)).free / 2**20:,.0f} MiB free)"
    except OSError:
        free = ""
    remedy = " Make room there." if error.errno in FULL else ""
    return WriteError(f"cannot write {path}: {reason}{free}. What was complete before is kept.{remedy}")


def io_error(error: OSError, path: Path) -> WriteError:
    """As `write_error` where the reason is the disk's; another failure of the system is told as it is."""
    if error.errno in FULL | IN_THE_WAY | FORBIDDEN:
        return write_error(error, path)
    return WriteError(f"{path}: {error.strerror or error}.")


def _in_the_way(path: Path) -> str:
    """What has a name that a file or folder is due under."""
    for place in reversed((path, *path.parents)):
        if place != path and os.path.lexists(place) and not place.is_dir():
            return f"{place} is a file, and a folder is due there"
    if path.is_dir():
        return f"{path} is a folder, and a file is due there"
    return f"{path} is a file, and a folder is due there" if os.path.lexists(path) else ""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of writing into `path` in this context as one message.

    Raises:
        WriteError: naming the path, the reason and what to do.
    """
    try:
        yield
    except OSError as error:
        raise write_error(error, Path(error.filename) if isinstance(error.filename, str) else path) from error


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


def is_occupied(folder: Path) -> bool:
    """Whether something is at a path that is no empty folder."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def require_new(folder: Path) -> None:
    """Refuse a place where something is already.

    Raises:
        UsageError: naming it.
    """
    if is_occupied(folder):
        raise UsageError(f"{folder} is there already; choose another --output-dir")


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
    aside = aside_of(path)
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        if os.name == "posix":
            # Some libraries write what only its owner can read; caches and folders of runs are shared.
            aside.chmod(MODE)
        aside.replace(path)
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def aside_of(path: Path) -> Path:
    """A name beside `path` to write to before it is renamed, which says whose it is: `remove_leftovers` reads it."""
    return path.with_name(f".{path.name}.{MACHINE}-{os.getpid()}.{secrets.token_hex(3)}.tmp")


def write_bytes(path: Path, data: bytes) -> None:
    """Write the whole file or nothing of it, trying again after transient errors."""

    def write() -> None:
        with replacing(path) as aside:
            aside.write_bytes(data)

    retried(write, path)


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all, trying again after errors that may pass.

    Raises:
        WriteError: when it stays impossible.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write() -> None:
        with replacing(path) as aside:
            try:
                save_file(dict(tensors), aside, metadata=dict(metadata))
            except SafetensorError as error:
                # The library says only in words what the system answered.
                number = re.search(r"os error (\d+)", str(error))
                if number is None:
                    raise
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from error

    retried(write, path)


def append_bytes(path: Path, data: bytes) -> None:
    """Append to a file, whole or not at all, trying again after errors that may pass.

    Raises:
        WriteError: when it stays impossible; the file is as it was.
    """

    def append() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                if (written := file.write(data)) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC) + f" after {written} of {len(data)} bytes")
            except OSError:
                file.truncate(before)
                raise

    retried(append, path)


def remove_leftovers(folder: Path, *, ours: bool = False) -> None:
    """Remove the files that writes left behind whose process was killed.

    Args:
        ours: whether nobody else writes below the folder, so that all are left over.
    """
    for path in folder.rglob(".*.tmp") if ours else folder.glob(".*.tmp"):
        with suppress(OSError):
            if LEFTOVER.fullmatch(path.name) if ours else is_leftover(path):
                path.unlink()


def is_leftover(path: Path) -> bool:
    """Whether a write left this behind: a process of this machine wrote it which is gone, or it is a day old."""
    if (found := LEFTOVER.fullmatch(path.name)) is None:
        return False
    ended = found[1] == MACHINE and not at_work(int(found[2]))
    return ended or time.time() - path.lstat().st_mtime > DAY


def note_use(path: Path) -> None:
    """Give a file of the cache the present time, which says when what it belongs to was last used; a file that this
    user may not write keeps its own."""
    with suppress(OSError):
        os.utime(path)


LEFTOVER, DAY = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)\.[0-9a-f]{6}\.tmp"), 86_400.0


def at_work(process: int) -> bool:
    """Whether a process of this number exists here, as far as the system says."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


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


def disk_bytes(path: Path) -> int:
    """Of a file, or of the files in a folder; a link counts as what it leads to, as those of the hub's cache do."""
    return sum(place.stat().st_size for place in (path, *path.rglob("*")) if place.is_file())


def sync_folder(folder: Path) -> None:
    """Make a rename within `folder` survive a power loss (POSIX; Windows needs no such call)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
