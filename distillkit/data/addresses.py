"""Addresses of data that are read as streams: patterns of several files, here or at a remote filesystem."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from distillkit.data.labels import shown
from distillkit.data.remote import RemoteFile, in_threads, opened_filesystem
from distillkit.errors import UsageError
from distillkit.files import canonical_json
from distillkit.text import redacted

MOST_FILES = 100_000
ASKERS = 16
"""Files whose sizes are asked for at one time: a server takes some 50 ms to answer, and there may be thousands."""
REMOTE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*(::[^/]*)?://")
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d{1,12})\.\.(\d{1,12})")
GLOB = re.compile(r"[*?\[]")
KINDS = (".tar", ".parquet")


def is_pattern(path: str) -> bool:
    """Whether a path names data that are read as a stream: `s3://...`, `{000..099}` or `*.tar`."""
    return bool(REMOTE.match(path) or BRACES.search(path) or (GLOB.search(path) and path.lower().endswith(KINDS)))


def is_remote(path: str) -> bool:
    """Whether a path is an address of a filesystem elsewhere."""
    return bool(REMOTE.match(path)) and not path.startswith(("file://", "memory://", "local://"))


def expanded(pattern: str) -> Iterator[str]:
    """What `{000..099}` and `{a,b}` stand for, in their order; numbers keep the width that they are written in.

    Raises:
        UsageError: for braces that hold neither, or more than `MOST_FILES`.
    """
    found = BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    for text in _alternatives(found[1], pattern):
        yield from expanded(pattern[: found.start()] + text + pattern[found.end() :])


def _alternatives(inside: str, pattern: str) -> Iterator[str]:
    if numbers := RANGE.fullmatch(inside):
        first, last = int(numbers[1]), int(numbers[2])
        if last < first or last - first >= MOST_FILES:
            raise UsageError(
                f"--data {shown(pattern)}: {{{inside}}} must go upwards, over at most {MOST_FILES:,} files"
            )
        yield from (str(number).zfill(len(numbers[1])) for number in range(first, last + 1))
    elif "," in inside:
        yield from inside.split(",")
    else:
        raise UsageError(f"--data {shown(pattern)}: write braces as {{000..099}} or {{a,b}}, not {{{shown(inside)}}}")


def files_at(pattern: str) -> list[RemoteFile]:
    """The files that a pattern names, in its order; those of a glob sorted.

    Raises:
        UsageError: when one is not there, they are of several kinds, or a package for their filesystem is missing.
        DistillkitError: when they cannot be listed.
    """
    addresses, found = list(islice(expanded(pattern), MOST_FILES + 1)), list[RemoteFile]()
    # What names too many is refused before a server is asked for each.
    if len(addresses) <= MOST_FILES:
        for files in in_threads(_files_of, addresses, ASKERS):
            found += files
    if max(len(addresses), len(found)) > MOST_FILES:
        raise UsageError(f"--data {shown(redacted(pattern))} names more than {MOST_FILES:,} files")
    if not found:
        raise UsageError(f"--data {shown(redacted(pattern))}: there is nothing that it names")
    endings = {ending(file) for file in found}
    if len(endings) > 1 or not endings <= set(KINDS):
        held = ", ".join(sorted(shown(kind) or "no ending" for kind in endings))
        raise UsageError(
            f"--data {shown(redacted(pattern))}: streams are of .tar or of .parquet files, and these are of {held}"
        )
    return found


def _files_of(address: str) -> list[RemoteFile]:
    """The files of an address without braces."""
    system, path = opened_filesystem(address)
    globbed = GLOB.search(path) and not address.startswith(("http://", "https://"))
    return system.glob(path) if globbed else [system.file(path)]


def ending(file: RemoteFile) -> str:
    """ ".tar", ".parquet", or what else a file's name ends in; queries of an address do not count."""
    name = re.split(r"[?#]", file.path)[0].rpartition("/")[2]
    return f".{name.rpartition('.')[2].lower()}" if "." in name else ""


def version_of(file: RemoteFile) -> str:
    """What tells a file from another of its address, as far as its filesystem says: size, tag, times."""
    known: dict[str, Any] = {}
    for name in ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "created", "blob_id", "sha256"):
        if (value := file.info.get(name)) is not None:
            known[name] = str(value)
    return canonical_json(known)
