"""Published files from a mirror of the user's, where one is named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from distillkit.downloads import download, offline
from distillkit.errors import DistillkitError
from distillkit.files import replacing, sha256
from distillkit.progress import Reporter
from distillkit.text import redacted

MIRROR = "DISTILLKIT_MIRROR"
"""A web address or a folder that stands in for the hosts of all publishers: files lie there by their published path."""


def forbidden() -> bool:
    """Whether published files cannot be had: the user has forbidden the network, and named no mirror."""
    return offline() and not os.environ.get(MIRROR)


def obtain(
    url: str, target: Path, *, reporter: Reporter, expected_sha256: str = "", recorded: str = "",
    should_stop: Callable[[], int] = lambda: 0,
) -> str:  # fmt: skip
    """`download` of a published file, or its copy from the mirror; returns its sha256.

    Raises:
        DistillkitError: when it cannot be had or has another hash; nothing lies under the target's name then.
        Interrupted: after a signal; what was downloaded of it stays.
    """
    mirror = os.environ.get(MIRROR, "")
    address = f"{mirror.rstrip('/')}{urlsplit(url).path}" if mirror else url
    if "://" in address:
        return download(
            address, target, reporter=reporter, expected_sha256=expected_sha256, recorded=recorded,
            should_stop=should_stop,
        )  # fmt: skip
    return _copied(Path(address).expanduser(), target, expected_sha256, recorded)


def _copied(source: Path, target: Path, expected: str, recorded: str) -> str:
    if not source.is_file():
        raise DistillkitError(f"the mirror has no {source} ({MIRROR} is {redacted(os.environ[MIRROR])})")
    found = sha256(source)
    if expected and found != expected:
        raise DistillkitError(
            f"{source} is not the file that was expected, and was not taken:\n  expected sha256 {expected}\n"
            f"  found sha256 {found}"
            + (f"\nIf you trust the new one, remove the hash from {recorded}." if recorded else "")
        )
    with replacing(target) as aside:
        shutil.copyfile(source, aside)
    return found
