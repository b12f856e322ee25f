"""The teachers that are on this machine beside those that come with packages: what `distillkit teachers` shows of them,
and the removal of one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distillkit.downloads import part_of
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import cache_folder, read_recorded
from distillkit.jobs.cache import Contents, Entry, Foreign, contents
from distillkit.jobs.prune import InUse, remove
from distillkit.models.diffusers import hub
from distillkit.models.store import fetch
from distillkit.models.store.folder import SPEC, read_spec
from distillkit.models.store.reference import File, Folder, Offered, Repository
from distillkit.models.store.resolve import resolve


@dataclass(frozen=True)
class LocalTeacher:
    """A teacher that was fetched, converted, or downloaded from the hub.

    Args:
        name: by which commands take it.
        what: one line for people.
        bytes: on the disk.
        licence: "" where it is not recorded.
        origin: where it came from: an address, the file that was converted, or the hub.
        entry: of distillkit's cache; None in the hub's.
    """

    name: str
    what: str
    bytes: int
    licence: str
    origin: str
    folder: Path
    entry: Entry | None = None


def local_teachers() -> tuple[list[LocalTeacher], list[Foreign]]:
    """The teachers in distillkit's cache and in the hub's, and what is wrong in the folder of the former."""
    found = contents()
    recorded = read_recorded(fetch.lock_file(), dict)
    teachers = [_of(entry, recorded) for entry in found.of("teachers") if not entry.spare]
    for snapshot in hub.snapshots():
        repository = hub.parts(snapshot.name)[0]
        origin = f"https://huggingface.co/{repository}"
        teachers.append(
            LocalTeacher(snapshot.name, snapshot.kind, snapshot.bytes, snapshot.licence, origin, snapshot.folder)
        )
    return teachers, [strange for strange in found.foreign if strange.path.parent == fetch.teachers_folder()]


def _of(entry: Entry, recorded: dict[str, dict[str, object]]) -> LocalTeacher:
    spec, known = read_spec(entry.path / SPEC), recorded.get(entry.path.name, {})
    origin = spec.source.partition(" (sha256")[0]
    if known.get("date"):
        origin += f", fetched {known['date']}"
    what = " x ".join(map(str, spec.shape))
    if entry.path.name != spec.name:
        what += f", {spec.name}, converted"
    return LocalTeacher(entry.path.name, what, entry.bytes, spec.licence, origin, entry.path, entry)


def removable(name: str) -> tuple[list[Entry], Contents]:
    """What of the cache belongs to a teacher, for `remove_teacher`: its folder, and half a download of it.

    Args:
        name: as commands take it, or of its folder in the cache.

    Raises:
        UsageError: for one that is not in distillkit's cache; says where it is.
        DistillkitError: where something in its folder is not distillkit's.
    """
    found = contents()
    path = _folder_of(name)
    entries = [entry for entry in found.of("teachers") if entry.path == path]
    if card := next((offer.card for offer in [_offered(name)] if offer), None):
        entries += [entry for entry in found.of("downloads") if entry.path == part_of(fetch.original_of(card))]
    if strange := next((strange for strange in found.foreign if strange.path == path), None):
        raise DistillkitError(
            f"{strange.path} stays: {strange.reason.rstrip('.')}. See to it, or remove the folder yourself"
        )
    if not entries:
        raise UsageError(f"{name} is not in the cache ({fetch.teachers_folder()}): there is nothing to remove")
    return entries, found


def remove_teacher(entries: list[Entry], found: Contents) -> None:
    """Remove what `removable` has found; the recorded hash of a published file stays.

    Raises:
        InUse: where another process is at work on it.
        DistillkitError: where it cannot be removed.
    """
    for entry in entries:
        try:
            remove(entry, found.root)
        except InUse as error:
            raise InUse(f"{entry.path.name} stays: {error}; try again when that has ended") from error
        except OSError as error:
            raise DistillkitError(f"{entry.path} cannot be removed: {error.strerror or error}") from error


def _offered(name: str) -> Offered | None:
    try:
        reference = resolve(name)
    except UsageError:
        return None
    return reference if isinstance(reference, Offered) else None


def _folder_of(name: str) -> Path:
    """The folder in the cache that a name stands for.

    Raises:
        UsageError: for a name of something else.
    """
    inside = fetch.teachers_folder()
    kept = inside / name
    if kept.parent == inside and name != "..":
        if kept.is_symlink():
            raise UsageError(f"{kept} is a link, to {kept.readlink()}, which is not distillkit's to remove")
        if kept.is_dir():
            return kept
    reference = resolve(name)
    if isinstance(reference, Offered):
        if not (reference.card and reference.card.url):
            raise UsageError(f"{reference.name} comes with {reference.offer.origin}, which is what to uninstall")
        return inside / reference.card.name
    if isinstance(reference, Repository):
        repository = hub.parts(name)[0]
        raise UsageError(
            f"{name} is in the hub's cache, which other programs share: `hf cache rm model/{repository}` removes it"
        )
    if isinstance(reference, File):
        if not reference.folder.is_dir():
            raise UsageError(f"{name} is a file of yours, of which the cache holds nothing: delete it yourself")
        return reference.folder
    assert isinstance(reference, Folder)
    path = reference.path.absolute()
    if path.parent == inside.absolute() and not path.is_symlink():
        return inside / path.name
    raise UsageError(f"{name} is outside of the cache ({cache_folder()}): delete the folder yourself")
