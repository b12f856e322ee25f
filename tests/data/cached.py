"""What was made of a kind, as `distillkit cache` sees it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from distillkit.jobs.cache import Entry, contents

LONG_AGO = 1_000_000_000.0


def cached(kind: str) -> list[Entry]:
    """The entries; nothing of them is foreign to the command, and something reads each."""
    found = contents()
    assert found.foreign == [], found.foreign
    entries = found.of(kind)
    assert entries and not any(entry.spare for entry in entries), entries
    assert all(entry.bytes > 0 for entry in entries)
    return entries


def uses_are_noted(kind: str, use: Callable[[], object]) -> None:
    """All entries of a kind are known to have been used, though their files were written long ago."""
    use()  # whatever is recorded of files of this age
    for entry in cached(kind):
        for place in (entry.path, *entry.path.rglob("*")):
            os.utime(place, (LONG_AGO, LONG_AGO))
    assert all(entry.used < LONG_AGO + 1 for entry in cached(kind))
    use()
    assert all(entry.used > time.time() - 600 for entry in cached(kind))
