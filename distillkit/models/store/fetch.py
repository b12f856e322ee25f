"""Published teachers: downloaded once, hash recorded, converted once, kept in the cache."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from distillkit.contracts.teacher import Teacher
from distillkit.errors import DistillkitError
from distillkit.files import cache_folder, note_use, read_recorded, sha256, write_json
from distillkit.locks import held, waiting
from distillkit.mirror import forbidden, obtain
from distillkit.models.store.card import Card, TeacherOffer
from distillkit.models.store.convert import convert
from distillkit.models.store.folder import SPEC, WEIGHTS, is_teacher_folder, read_teacher
from distillkit.progress import Reporter


def teachers_folder() -> Path:
    """Where fetched and converted teachers are kept."""
    return cache_folder() / "teachers"


def lock_file() -> Path:
    """The hashes of what was downloaded: trusted at first use, required ever after."""
    return teachers_folder() / "lock.json"


def lock_of(name: str) -> Path:
    """Held while a teacher is fetched or removed."""
    return teachers_folder() / f".{name}.lock"


def fetched(card: Card) -> Path | None:
    """The folder of a teacher that has been fetched before."""
    folder = teachers_folder() / card.name
    return folder if is_teacher_folder(folder) else None


def original_of(card: Card) -> Path:
    """Where a published file lies while it is converted, and where it may be put by hand."""
    return cache_folder() / "downloads" / Path(urlsplit(card.url).path).name


def check_offline(card: Card) -> None:
    """Refuse what would have to be downloaded where the user has forbidden the network.

    Raises:
        DistillkitError: naming the file and its place.
    """
    if forbidden() and not (fetched(card) or original_of(card).is_file()):
        raise DistillkitError(
            f"the teacher {card.name} is not in the cache and HF_HUB_OFFLINE forbids to download it. "
            f"Fetch {card.url} elsewhere and place it at {original_of(card)}, or unset HF_HUB_OFFLINE."
        )


def fetch(card: Card, reporter: Reporter, should_stop: Callable[[], int] = lambda: 0) -> Path:
    """The teacher's folder, after downloading and converting it where that has not been done.

    One process does it while others wait. `DISTILLKIT_MIRROR`, a web address or a folder, replaces the published
    host. `HF_HUB_OFFLINE=1` forbids the network. A file put into the cache's downloads folder by hand is taken.

    Raises:
        DistillkitError: when it cannot be had, differs from the hash recorded before, or is refused by the reader.
        Interrupted: after a signal; what has arrived is kept.
    """
    if folder := fetched(card):
        note_use(folder / SPEC)
        return folder
    folder = teachers_folder() / card.name
    teachers_folder().mkdir(parents=True, exist_ok=True)
    with held(lock_of(card.name), waiting(reporter.say, f"fetching {card.name}", should_stop)):
        if fetched(card):
            return folder
        original = original_of(card)
        reporter.say(f"{card.name}: {card.title}\nlicence: {card.spec.licence}")
        known = card.sha256 or _recorded(card)
        placed = original.is_file()
        if placed:
            reporter.say(f"taking {original}")
            found = _verified(original, known)
        else:
            found = _get(card, original, known, reporter, should_stop)
        reporter.say(f"reading {original.name} (nothing in it is executed)")
        try:
            convert(
                original, folder, name=card.name, licence=card.spec.licence, source=card.url, expected=card.spec,
                say=reporter.say,
            )  # fmt: skip
        except DistillkitError as error:
            raise DistillkitError(f"{error}\n{_not_the_teacher(card, original, placed=placed)}") from error
        if not known:
            # Only what has proved to be the teacher is trusted from now on.
            _record(card, original, found)
            reporter.say(
                f"sha256 {found}\nrecorded at first use in {lock_file()}; a later download that differs is refused"
            )
        original.unlink()
        reporter.say(f"converted to safetensors in {folder}")
    return folder


def offer_of(card: Card) -> TeacherOffer:
    """A published teacher, as the hook `distillkit_teachers` offers it: fetched when it is first loaded."""

    def read(reporter: Reporter, should_stop: Callable[[], int]) -> Teacher:
        folder = fetch(card, reporter, should_stop)
        return read_teacher(folder / SPEC, folder / WEIGHTS)

    return TeacherOffer(card, read)


def _not_the_teacher(card: Card, original: Path, *, placed: bool) -> str:
    """What is to be done about a file that is not the teacher; one that was downloaded is removed."""
    if placed:
        return (
            f"{original}, which was placed there by hand, is not {card.name}: replace it by {card.url}, or remove it."
        )
    original.unlink(missing_ok=True)
    return (
        f"What was downloaded is not {card.name}, and was removed; nothing was recorded in {lock_file()}. Try again, "
        f"on another network if this one asks for a login; or fetch {card.url} elsewhere and place it at {original}."
    )


def _get(card: Card, target: Path, known: str, reporter: Reporter, should_stop: Callable[[], int]) -> str:
    check_offline(card)
    recorded = "" if card.sha256 else f"{lock_file()} (entry {card.name!r})"
    return obtain(
        card.url, target, reporter=reporter, expected_sha256=known, recorded=recorded, should_stop=should_stop
    )


def _verified(path: Path, known: str) -> str:
    found = sha256(path)
    if known and found != known:
        raise DistillkitError(
            f"{path} is not the file that was used before:\n  recorded sha256 {known} ({lock_file()})\n"
            f"  found sha256 {found}\n"
            "Remove the file; or, if you trust the new one, remove its entry from the lock file."
        )
    return found


def _recorded(card: Card) -> str:
    """The hash of an earlier download; empty where there was none.

    Raises:
        DistillkitError: when the lock file is damaged.
    """
    found = read_recorded(lock_file(), dict).get(card.name, {}).get("sha256", "")
    if found and not (isinstance(found, str) and re.fullmatch("[0-9a-f]{64}", found)):
        raise DistillkitError(f"{lock_file()}: the entry {card.name!r} has no sha256; repair or remove it")
    return str(found)


def _record(card: Card, original: Path, found: str) -> None:
    with held(teachers_folder() / ".lock.json.lock", lambda: None):
        known = read_recorded(lock_file(), dict)
        known[card.name] = {
            "url": card.url,
            "sha256": found,
            "bytes": original.stat().st_size,
            "date": datetime.now(UTC).date().isoformat(),
        }
        write_json(lock_file(), known)
