"""Downloads that survive cuts, stalls and restarts, and that end with a verified file or none."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from distillkit.errors import DistillkitError, Interrupted
from distillkit.files import require_space, sha256, sync_folder, write_json
from distillkit.locks import held, waiting
from distillkit.progress import Reporter
from distillkit.reading import Unreadable, read_mapping
from distillkit.text import redacted

if TYPE_CHECKING:
    import requests

CHUNK = 2**14
"""A cut loses at most the chunk that was on its way."""
MOST_FAILURES = 5
"""Failures in a row, without a byte gained, after which a download gives up."""
TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})


HUB_SWITCH = "HF_HUB_OFFLINE"


class DownloadNeeded(DistillkitError):
    """A plan got to something that only the run may download."""


@dataclass
class Needed:
    """What a plan found that the run would download."""

    names: list[str] = field(default_factory=list)


_plan: ContextVar[Needed | None] = ContextVar("plan", default=None)


@contextmanager
def nothing_downloaded() -> Iterator[Needed]:
    """Nothing is downloaded while this lasts, by plugins through the hub's client neither; what would be is collected.

    Where the user has forbidden the network, the run would fail and so does the plan: nothing is collected then.
    """
    needed, was = Needed(), os.environ.get(HUB_SWITCH)
    if offline():
        yield needed
        return
    token = _plan.set(needed)
    os.environ[HUB_SWITCH] = "1"
    _tell_hub(offline=True)
    try:
        yield needed
    finally:
        _plan.reset(token)
        if was is None:
            del os.environ[HUB_SWITCH]
        else:
            os.environ[HUB_SWITCH] = was
        _tell_hub(offline=False)


def only_planned(what: str) -> bool:
    """Whether this is a plan: `what`, which is about to be downloaded, is noted and must not be."""
    needed = _plan.get()
    if needed is None:
        return False
    if what not in needed.names:
        needed.names.append(what)
    return True


def is_for_a_download(error: BaseException | None) -> bool:
    """Whether a plan failed only for lack of a download that it may not make."""
    if _plan.get() is None:
        return False
    while error is not None:
        if type(error).__name__ in ("DownloadNeeded", "OfflineModeIsEnabled", "LocalEntryNotFoundError"):
            return True
        error = error.__cause__ or error.__context__
    return False


def _tell_hub(*, offline: bool) -> None:
    """The hub's libraries read the switch once, when they are imported."""
    for module, name in (("huggingface_hub.constants", HUB_SWITCH), ("datasets.config", HUB_SWITCH)):
        if module in sys.modules:
            setattr(sys.modules[module], name, offline)


def offline() -> bool:
    """Whether the user asked for no network, by the hub's own switch."""
    return os.environ.get(HUB_SWITCH, "").upper() in {"1", "ON", "YES", "TRUE"}


def download(
    url: str,
    target: Path,
    *,
    reporter: Reporter,
    expected_sha256: str = "",
    recorded: str = "",
    should_stop: Callable[[], int] = lambda: 0,
    timeout: float = 30.0,
    pause: float = 0.5,
) -> str:
    """Fetch `url` to `target`; returns its sha256. Proxies are taken from the environment.

    What has arrived lies beside the target in a `.part` file and is continued by the next call, if the server still
    has the same file.

    One process does it while others wait.

    Args:
        expected_sha256: refuse anything else; empty to accept what comes.
        recorded: where that hash was recorded at an earlier download, for messages.
        should_stop: a signal's number once one has come, else 0.
        timeout: seconds without a byte that count as a stall.
        pause: seconds before the first retry; doubled with each.

    Raises:
        DistillkitError: when it cannot be had or has another hash; nothing lies under the target's name then.
        Interrupted: after a signal; the part stays.
    """
    was_there = target.exists()
    with held(lock_of(target), waiting(reporter.say, f"downloading {target.name}", should_stop)):
        if not was_there and target.exists():
            found = sha256(target)
            if found == (expected_sha256 or found):
                return found
        return _download(url, target, reporter, expected_sha256, recorded, should_stop, timeout, pause)


def lock_of(target: Path) -> Path:
    """Held while a file is downloaded."""
    return target.with_name(f".{target.name}.lock")


def part_of(target: Path) -> Path:
    """Where what has arrived of a file lies; beside it are notes about it."""
    return target.with_name(f".{target.name}.part")


def _download(
    url: str, target: Path, reporter: Reporter, expected_sha256: str, recorded: str, should_stop: Callable[[], int],
    timeout: float, pause: float,
) -> str:  # fmt: skip
    import requests

    part = part_of(target)
    part.parent.mkdir(parents=True, exist_ok=True)
    failures, reason = 0, ""
    with requests.Session() as session:
        while failures < MOST_FAILURES:
            had = part.stat().st_size if part.exists() else 0
            try:
                done = _continue(session, url, part, reporter, should_stop, timeout)
            except (requests.RequestException, ConnectionError, TimeoutError) as error:
                done, reason = False, _said(error)
            except OSError as error:
                raise DistillkitError(
                    f"cannot write {part}: {error.strerror or error}. Make room and try again."
                ) from error
            if done:
                break
            gained = (part.stat().st_size if part.exists() else 0) > had
            failures = 1 if gained else failures + 1
            reason = reason or "the connection was cut"
            reporter.say(f"{reason}; trying again ({failures} of {MOST_FAILURES})")
            time.sleep(min(pause * 2 ** (failures - 1), 10.0))
        else:
            raise DistillkitError(
                f"cannot download {redacted(url)}: {reason}. What has arrived is kept; the same command goes on "
                "with it. "
                f"Or place the file at {target} yourself."
            )
    found = sha256(part)
    if expected_sha256 and found != expected_sha256:
        _discard(part)
        raise DistillkitError(
            f"{redacted(url)} is not the file that was expected, and was removed:\n"
            f"  expected sha256 {expected_sha256}\n"
            f"  received sha256 {found}\nTry again; if it stays so, the file was changed or the line alters it."
            + (f" If you trust the new one, remove the hash from {recorded}." if recorded else "")
        )
    part.replace(target)
    notes_of(part).unlink(missing_ok=True)
    sync_folder(target.parent)
    return found


def _continue(
    session: requests.Session, url: str, part: Path, reporter: Reporter, should_stop: Callable[[], int], timeout: float
) -> bool:
    """Append what the server sends; whether the file is complete now."""
    here = part.stat().st_size if part.exists() else 0
    version = _version(part) if here else ""
    name = redacted(url).rpartition("/")[2]
    headers = {"Accept-Encoding": "identity"}
    if here and version:
        headers |= {"Range": f"bytes={here}-", "If-Range": version}
    with session.get(url, headers=headers, stream=True, timeout=(10.0, timeout)) as response:
        if response.status_code == 416:
            _discard(part)
            return False
        if response.status_code in TEMPORARY:
            raise ConnectionError(f"the server answers {response.status_code} {response.reason}")
        if response.status_code not in (200, 206):
            raise DistillkitError(
                f"cannot download {redacted(url)}: the server answers {response.status_code} {response.reason}. "
                f"Check the address, or place the file at {part.with_name(part.name[1:-5])} yourself."
            )
        continued = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {here}-"
        )
        if not continued:
            here = 0
            _discard(part)
        length = response.headers.get("Content-Length", "")
        total = here + int(length) if length.isdigit() else None
        if total:
            require_space(part.parent, total - here, f"{name} needs room:")
        write_json(
            notes_of(part),
            {
                "url": redacted(url),
                "version": response.headers.get("ETag") or response.headers.get("Last-Modified", ""),
            },
        )
        with (
            part.open("ab" if here else "wb") as file,
            reporter.task(f"downloading {name}", total or 0, "bytes", here) as task,
        ):
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                task.advance(len(chunk))
                if signum := should_stop():
                    raise Interrupted("stopped; what has arrived is kept, the same command goes on with it", signum)
            file.flush()
            os.fsync(file.fileno())
    arrived = part.stat().st_size
    if total is not None and arrived > total:
        _discard(part)
        return False
    return total is None or arrived == total


def _version(part: Path) -> str:
    """The server's strong version tag of what the part is a part of; empty if it gave none."""
    try:
        version = str(read_mapping(notes_of(part)).get("version", ""))
    except Unreadable:
        return ""
    return "" if version.startswith("W/") else version


def notes_of(part: Path) -> Path:
    """The server's version of what the part is a part of."""
    return part.with_name(f"{part.name}.json")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    notes_of(part).unlink(missing_ok=True)


def _said(error: Exception) -> str:
    import requests

    text = str(error)
    if "NameResolution" in text or "getaddrinfo" in text:
        return "the host's name cannot be resolved (is there a network?)"
    if isinstance(error, (requests.Timeout, TimeoutError)) or "timed out" in text:
        return "the server sends nothing any more"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy refuses"
    if isinstance(error, (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        return "the connection failed or was cut"
    return redacted(text.splitlines()[0])[:200] if text else type(error).__name__
