"""Removing from the cache: what nothing reads any more, what is old, and a teacher. Whatever another process is at
work on stays, and so does everything outside of the cache."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from distillkit.data import shards
from distillkit.data.claims import Claims
from distillkit.data.pair_notes import used_by
from distillkit.downloads import notes_of
from distillkit.errors import DistillkitError
from distillkit.files import aside_of, at_work
from distillkit.jobs.cache import PART, Contents, Entry, contents
from distillkit.locks import held_if_free
from distillkit.reading import Unreadable, read_mapping
from distillkit.runs.folder import OWNER


class InUse(DistillkitError):
    """Another process is at work on what was to be removed."""


@dataclass
class Pruned:
    """What `prune` did, or would do.

    Args:
        removed: each with the reason.
        kept: what was to be removed and was not, each with the reason.
        contents: of the cache before.
    """

    contents: Contents
    removed: list[tuple[Entry, str]] = field(default_factory=list)
    kept: list[tuple[Entry, str]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry, _ in self.removed)


def prune(
    older_than: float | None = None, *, dry_run: bool = False, stop: Callable[[], int] = lambda: 0,
    root: Path | None = None,
) -> Pruned:  # fmt: skip
    """Remove what nothing reads: half downloads, temporary files, and what other versions have made.

    It may be interrupted at any time: what is removed gets another name first, and is spare then.

    Args:
        older_than: seconds since the last use, after which is removed too what the command that needs it makes again.
            Teachers, and the networks and statistics of protocols, stay.
        dry_run: only say what would be removed.
        stop: the number of a signal that came, or 0; what is left stays then.
        root: of the cache; distillkit's own by default.
    """
    found, now = contents(root), time.time()
    done = Pruned(found)
    for entry in found.entries:
        reason = entry.spare
        if not reason and older_than is not None and entry.again and now - entry.used > older_than:
            reason = f"last used {(now - entry.used) / 86_400:,.0f} days ago"
        if not reason:
            continue
        if stop():
            done.kept.append((entry, "stopped before it"))
            continue
        try:
            if dry_run:
                with ExitStack() as stack:
                    _require_free(entry, stack)
            else:
                remove(entry, found.root)
        except FileNotFoundError:
            continue  # its process has taken it away
        except (OSError, InUse) as error:
            said = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            done.kept.append((entry, said))
        else:
            done.removed.append((entry, reason))
    return done


def remove(entry: Entry, root: Path) -> None:
    """Remove an entry of the cache, whole or not at all as far as others see.

    Raises:
        InUse: where another process is at work on it.
        OSError: where it cannot be removed.
    """
    require_inside(entry.path, root)
    with ExitStack() as stack:
        _require_free(entry, stack)
        if entry.path.name.endswith(PART):
            notes_of(entry.path).unlink(missing_ok=True)
        aside = aside_of(entry.path)
        entry.path.rename(aside)
        if aside.is_dir():
            # Symbolic links are removed and not followed.
            shutil.rmtree(aside)
        else:
            aside.unlink()


def require_inside(path: Path, root: Path) -> None:
    """Refuse what is not in the cache's own folders, by any name or link.

    Raises:
        InUse: naming it.
    """
    if path.is_symlink() or path.parent.resolve() != root.resolve() / path.parent.relative_to(root):
        raise InUse(f"{path} is a link, or behind one: what it leads to is not distillkit's to remove")


def _require_free(entry: Entry, stack: ExitStack) -> None:
    """Hold the locks of whoever makes an entry while the stack lasts.

    Raises:
        InUse: where another process has one, or reads the entry.
    """
    for lock in entry.locks:
        if not stack.enter_context(held_if_free(lock)):
            raise InUse("another process is at work on it")
    for lock in entry.path.glob(".*.lock") if entry.path.is_dir() else ():
        # Inside it: looked at alone, as it goes with the folder.
        with held_if_free(lock) as free:
            if not free:
                raise InUse("another process is at work on it")
    claims = entry.path / shards.CLAIMS
    if claims.is_dir() and Claims(claims).are_held():
        raise InUse("other processes are writing it")
    if run := next(_readers(entry.path), None):
        raise InUse(f"the run {run} reads it")


def _readers(folder: Path) -> Iterator[str]:
    """Runs that have read these pairs and are at work, as far as their folders say."""
    for run in used_by(folder):
        try:
            owner = read_mapping(Path(run) / OWNER)
        except Unreadable:
            continue
        process = owner.get("pid")
        ended = owner.get("host") == socket.gethostname() and isinstance(process, int) and not at_work(process)
        if not ended:
            yield run
