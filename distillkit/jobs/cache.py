"""What the cache holds, by kind. Nothing is changed, links are not followed, and of large files only sizes are read."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from distillkit.data import encodings, latents, pair_store, prompts, shards
from distillkit.data.pair_notes import described
from distillkit.downloads import lock_of, notes_of
from distillkit.evaluation.extractor import INCEPTION_FILE
from distillkit.evaluation.presets import ProtocolPreset, presets
from distillkit.evaluation.record import Record
from distillkit.files import LEFTOVER, cache_folder, is_leftover
from distillkit.models.store import fetch
from distillkit.models.store.folder import SPEC, WEIGHTS, is_teacher_folder, read_spec
from distillkit.models.store.resolve import cards
from distillkit.reading import Unreadable, read_mapping
from distillkit.text import printable


@dataclass(frozen=True)
class Entry:
    """One thing in the cache.

    Args:
        kind: name of its folder in the cache.
        about: one line for people; "" where nothing is known.
        bytes: of its files. used: when it was last used, in seconds since 1970.
        again: whether the command that needs it makes it again.
        spare: why nothing reads it any more; "" where something may.
        locks: held by whoever makes it.
    """

    kind: str
    path: Path
    bytes: int
    used: float
    about: str = ""
    again: bool = True
    spare: str = ""
    locks: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Foreign:
    """What distillkit did not write, or cannot read; it is left alone."""

    path: Path
    reason: str


@dataclass
class Contents:
    """What is in a cache folder.

    Args:
        root: of the cache.
        entries: what is kept, and what is spare: leftovers of killed processes and half downloads.
        foreign: everything else.
    """

    root: Path
    entries: list[Entry] = field(default_factory=list)
    foreign: list[Foreign] = field(default_factory=list)

    def of(self, kind: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.kind == kind]


class NotOurs(Exception):
    """Holds what distillkit does not write there."""


@dataclass(frozen=True)
class Kind:
    """A folder of the cache.

    Args:
        title: for people.
        look: at something in that folder: what it is, or None for what is no part of the contents, such as a lock.
        inner: names of folders between it and its entries, where there are some.
    """

    title: str
    look: Callable[[Path], Entry | None]
    inner: str = ""


def contents(root: Path | None = None) -> Contents:
    """Everything in the cache.

    Args:
        root: of the cache; distillkit's own by default.
    """
    found = Contents(root or cache_folder())
    for path in _inside(found.root, found):
        if path.name == NAMES and path.is_file():
            found.entries.append(_file(NAMES.removesuffix(".json"), path))
        elif path.name in KINDS and path.is_dir():
            _look(path, KINDS[path.name], found)
        elif not _is_lock(path) and not _leftover("", path, found):
            found.foreign.append(Foreign(path, "no file or folder of distillkit's"))
    return found


def _look(folder: Path, kind: Kind, found: Contents) -> None:
    for path in _inside(folder, found):
        if kind.inner and re.fullmatch(kind.inner, path.name) and path.is_dir():
            _look(path, Kind(kind.title, kind.look), found)
        elif not _is_lock(path) and not _leftover(folder.name, path, found):
            try:
                entry = kind.look(path)
            except NotOurs as error:
                found.foreign.append(Foreign(path, str(error)))
            except FileNotFoundError:
                continue
            except OSError as error:
                found.foreign.append(Foreign(path, f"cannot be read: {error.strerror or error}"))
            else:
                if entry is not None:
                    found.entries.append(entry)
                    for inner in sorted(path.glob("**/.*.tmp")) if not entry.spare else ():
                        _leftover(folder.name, inner, found)


def _inside(folder: Path, found: Contents) -> Iterator[Path]:
    """What is in a folder, by name, but for links, which are named."""
    try:
        listed = sorted(folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        found.foreign.append(Foreign(folder, f"cannot be read: {error.strerror or error}"))
        return
    for path in listed:
        if path.is_symlink():
            found.foreign.append(Foreign(path, f"a link, to {printable(str(path.readlink()))}"))
        else:
            yield path


def _is_lock(path: Path) -> bool:
    return path.suffix == ".lock" or path.name == LOCKED


def _leftover(kind: str, path: Path, found: Contents) -> bool:
    """Whether this is a write's temporary file; one whose process is gone is spare."""
    if not LEFTOVER.fullmatch(path.name):
        return False
    if is_leftover(path):
        found.entries.append(measured(kind, path, spare="a temporary file of a process that has ended"))
    return True


def measured(kind: str, path: Path, allowed: str = ".*", *, spare: str = "") -> Entry:
    """A file or folder with its size and last use.

    Args:
        allowed: pattern of the paths in it that distillkit writes there.

    Raises:
        NotOurs: where it holds another file, or a link.
        OSError: where it cannot be read, or has gone.
    """
    first = path.lstat()
    if not stat.S_ISDIR(first.st_mode):
        return Entry(kind, path, first.st_size, first.st_mtime, spare=spare)
    size, used = 0, 0.0
    for place in sorted(path.rglob("*")):
        name = place.relative_to(path).as_posix()
        try:
            state = place.lstat()
        except FileNotFoundError:  # of another process, which has renamed it by now
            continue
        if stat.S_ISLNK(state.st_mode):
            raise NotOurs(f"holds a link, {printable(name)}")
        if stat.S_ISDIR(state.st_mode) or LEFTOVER.fullmatch(place.name):
            continue
        if not stat.S_ISREG(state.st_mode) or not re.fullmatch(allowed, name):
            raise NotOurs(f"holds {printable(name)}, which is no file of distillkit's")
        size, used = size + state.st_size, max(used, 0.0 if _is_lock(place) else state.st_mtime)
    return Entry(kind, path, size, used or first.st_mtime, spare=spare)


def _file(kind: str, path: Path, pattern: str = ".*") -> Entry:
    """A file of this name.

    Raises:
        NotOurs: for another name, or a folder.
    """
    if not re.fullmatch(pattern, path.name) or not path.is_file():
        raise NotOurs("no file of distillkit's")
    return measured(kind, path)


SHARDS = rf"manifest\.json|about\.json|used-by\.json|{re.escape(shards.LOCK)}|{shards.NAME.pattern}|\.claims/.*"


def _store(kind: str, keyed_by: frozenset[str], path: Path) -> Entry:
    """A folder of shards, which its name is the hash of."""
    if not (named := re.fullmatch(r".+-([0-9a-f]{16})", path.name)) or not path.is_dir():
        raise NotOurs("no folder of distillkit's")
    entry, identity = measured(kind, path, SHARDS), shards.identity_of(path)
    about, spare = named[0].rpartition("-")[0], ""
    if identity is not None:
        # A folder of another name, or keyed by other things, is what no call of this version asks for.
        if identity.keys() != keyed_by:
            spare = OTHER_VERSION
        elif shards.identity_hash(identity) != named[1]:
            spare = "its name is not that of its contents, so nothing asks for it"
        count = len(list(path.glob("shard-*")))
        about = f"{described(path) or about}, {count:,} shard{'s' * (count != 1)}"
    return replace(entry, about=about, spare=spare)


def _prompts(path: Path) -> Entry:
    if not re.fullmatch(r".+-[0-9a-f]{16}", path.name) or not path.is_dir():
        raise NotOurs("no folder of distillkit's")
    names = "|".join(map(re.escape, (prompts.TEXTS, prompts.PLACES, prompts.DESCRIBED, ".lock")))
    entry = measured("prompts", path, names)
    try:
        known = read_mapping(path / prompts.DESCRIBED)
    except Unreadable:
        return entry
    spare = "" if known.get("format") == prompts.FORMAT else OTHER_VERSION
    return replace(entry, about=f"{known.get('count', '?')} prompts", spare=spare)


def _stream(path: Path) -> Entry:
    return replace(_file("streams", path, r".+-[0-9a-f]{24}\.safetensors"), about=path.name.rpartition("-")[0])


def _record(path: Path) -> Entry:
    entry = _file("records", path, r"[0-9a-f]{16}\.json")
    try:
        body = read_mapping(path)
    except Unreadable as error:
        raise NotOurs(f"damaged: {error}") from error
    subject = body.get("subject")
    name = subject.get("name") if isinstance(subject, dict) else ""
    about = f"{printable(str(name))[:60]}, {printable(str(body.get('label', '')))[:60]}"
    spare = "" if body.get("format") == Record.model_fields["format"].default else OTHER_VERSION
    return replace(entry, about=about, spare=spare)


def _evaluation(path: Path) -> Entry:
    if not re.fullmatch(r"(reference-)?[0-9a-f]{16}", path.name) or not path.is_dir():
        raise NotOurs("no folder of distillkit's")
    kept = r"(part-\d+/|whole/)?(features\.f32|samples\.sha256|seal\.json)"
    locks = tuple(sorted(path.parent.glob(f"{path.name}*.lock")))
    return replace(measured("evaluations", path, kept), about="an interrupted measurement", locks=locks)


def _needed(path: Path) -> Entry | None:
    """A file that protocols need, or part of one."""
    if path.name.endswith((PART, f"{PART}.json")):
        return _part("evaluation", path)
    known = [preset for preset in presets().values() if isinstance(preset, ProtocolPreset)]
    users = [preset.name for preset in known if path.name in (preset.reference.file, preset.prompts)]
    if path.name == INCEPTION_FILE:
        users = ["the Inception network"]
    if not users:
        raise NotOurs("needed by no protocol that is installed")
    return replace(_file("evaluation", path), about=", ".join(users), again=False)


def _part(kind: str, path: Path) -> Entry | None:
    """What has arrived of a download, which goes on from there."""
    if path.name.endswith(f"{PART}.json"):
        part = path.with_name(path.name.removesuffix(".json"))
        return None if part.exists() else replace(_file(kind, path), spare="notes on a download that is not there")
    target = path.with_name(path.name.removeprefix(".").removesuffix(PART))
    entry, notes = _file(kind, path), notes_of(path)
    size = entry.bytes + (notes.stat().st_size if notes.is_file() else 0)
    about, locks = f"a part of {target.name}", (lock_of(target),)
    return replace(entry, bytes=size, about=about, spare="half a download", locks=locks)


def _download(path: Path) -> Entry | None:
    if path.name.endswith((PART, f"{PART}.json")):
        return _part("downloads", path)
    published = {Path(urlsplit(card.url).path).name: card for card in cards().values() if card.url}
    if (card := published.get(path.name)) is None:
        raise NotOurs("no file of a teacher that is known here")
    spare = f"the teacher {card.name} is here, converted" if fetch.fetched(card) else ""
    about, locks = f"the published file of {card.name}", (fetch.lock_of(card.name),)
    return replace(_file("downloads", path), about=about, again=False, spare=spare, locks=locks)


def _teacher(path: Path) -> Entry:
    if not path.is_dir():
        raise NotOurs("no file of distillkit's")
    entry = measured("teachers", path, r"[\w.-]+\.(safetensors|json)")
    entry = replace(entry, again=False, locks=(fetch.lock_of(path.name),))
    if is_teacher_folder(path):
        try:
            spec = read_spec(path / SPEC)
        except Unreadable as error:
            raise NotOurs(f"damaged: {error}") from error
        return replace(entry, about=f"{spec.name}, {' x '.join(map(str, spec.shape))}")
    if not re.fullmatch(r".+-[0-9a-f]{16}", path.name) and path.name not in cards():
        raise NotOurs(f"no teacher folder: it has no {SPEC} with {WEIGHTS}")
    return replace(entry, spare="what an interrupted conversion has left")


OTHER_VERSION = "made by another version, which this one does not read"
PART, LOCKED, NAMES = ".part", "lock.json", "completion.json"

KINDS = {
    "teachers": Kind("teachers, fetched and converted", _teacher),
    "downloads": Kind("published files on their way", _download),
    "pairs": Kind("noise-image pairs", partial(_store, "pairs", pair_store.IDENTITY)),
    "latents": Kind("latents of images", partial(_store, "latents", latents.IDENTITY)),
    "encodings": Kind("encodings of prompts", partial(_store, "encodings", encodings.IDENTITY)),
    "prompts": Kind("lists of prompts", _prompts),
    "streams": Kind("indices of streamed files", _stream, "[0-9a-f]{2}"),
    "evaluation": Kind("networks and statistics of protocols", _needed),
    "evaluations": Kind("features of interrupted measurements", _evaluation),
    "records": Kind("teachers' figures", _record),
}
"""The folders of the cache."""
TITLES = {name: kind.title for name, kind in KINDS.items()} | {"completion": "names for completion"}
