"""The files that protocols need and that do not ship: reference statistics and networks, verified before they are used.

The hash of reference numbers is recorded once, by the user who trusts it, in `lock.json`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from distillkit.contracts.text import prompts_sha256
from distillkit.errors import DistillkitError
from distillkit.evaluation.extractor import INCEPTION_FILE, INCEPTION_SHA256, INCEPTION_URL, evaluation_folder
from distillkit.evaluation.reference import Reference, load_reference
from distillkit.files import read_recorded, write_json
from distillkit.mirror import forbidden, obtain
from distillkit.progress import Reporter
from distillkit.reading import Unreadable, read_text

if TYPE_CHECKING:
    from distillkit.evaluation.presets import ProtocolPreset


PROMPTS = "/prompts"
"""Behind a protocol's name in the lock file, for the hash of its prompts."""
LARGEST_PROMPTS = 64 * 2**20


def lock_file() -> Path:
    """The recorded hashes of reference numbers and of prompts, by protocol."""
    return evaluation_folder() / "lock.json"


def reference_of(chosen: ProtocolPreset) -> Reference:
    """A protocol's reference statistics, which must match the hash that was recorded for them.

    Raises:
        DistillkitError: when they are missing, have no recorded hash (it is shown), or another one.
    """
    wanted = chosen.reference
    if wanted.load is not None:
        return wanted.load()
    path = evaluation_folder() / wanted.file
    if not path.is_file():
        how = (
            f"`distillkit protocols fetch {chosen.name}`, or place {wanted.url} at {path}"
            if wanted.url
            else f"`distillkit reference make --protocol {chosen.name} --data IMAGES --output {shlex.quote(str(path))}`"
        )
        raise DistillkitError(f"the reference statistics of {chosen.name} are not here. Get them by {how}")
    reference = _read(path, chosen)
    found, known = reference.spec.sha256, pinned(chosen.name)
    if not known:
        raise DistillkitError(
            f"the reference statistics of {chosen.name} have no recorded hash yet. They hash to\n  {found}\n"
            f"Compare it with a hash you trust, then record it: distillkit protocols pin {chosen.name} --sha256 {found}"
        )
    if found != known:
        raise DistillkitError(
            f"{path} is not the reference that was recorded:\n  recorded sha256 {known} ({lock_file()})\n"
            f"  found sha256 {found}\nFigures against it would not be comparable; restore the file."
        )
    return reference


def prompts_of(chosen: ProtocolPreset) -> tuple[str, ...]:
    """A protocol's prompts, one a line of a text file: a path, or a name in the evaluation folder. Those in the folder
    must match the hash that was recorded for them, as references must.

    Raises:
        DistillkitError: when the file is not there, holds none, has no recorded hash (it is shown), or another one.
    """
    path = evaluation_folder() / Path(chosen.prompts).expanduser()
    try:
        lines = read_text(path, LARGEST_PROMPTS).splitlines()
    except Unreadable as error:
        raise DistillkitError(f"the prompts of {chosen.name}, one a line: {error}") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise DistillkitError(f"{path} holds no prompts; it has one a line")
    if Path(chosen.prompts).name != chosen.prompts:
        return prompts  # of a plugin, which brings the file
    found, known = prompts_sha256(prompts), pinned(chosen.name + PROMPTS)
    if not known:
        raise DistillkitError(
            f"the prompts of {chosen.name} have no recorded hash yet. {path} holds {len(prompts):,}, which hash to\n"
            f"  {found}\nCompare it with a hash you trust, then record it: distillkit protocols pin {chosen.name} "
            f"--prompts-sha256 {found}"
        )
    if found != known:
        raise DistillkitError(
            f"{path} does not hold the prompts that were recorded:\n  recorded sha256 {known} ({lock_file()})\n"
            f"  found sha256 {found}\nFigures on them would not be comparable; restore the file."
        )
    return prompts


def _read(path: Path, chosen: ProtocolPreset) -> Reference:
    key = "fd_dinov2" if chosen.extractor == "dinov2" else "fid"
    return load_reference(path, name=chosen.reference.id, count=chosen.reference.count, key=key)


def _require_statistics(path: Path, chosen: ProtocolPreset) -> None:
    """Remove a download that holds no reference statistics, so that the next one is not kept from its place.

    Raises:
        DistillkitError: saying what it holds.
    """
    try:
        _read(path, chosen)
    except DistillkitError as error:
        path.unlink(missing_ok=True)
        raise DistillkitError(
            f"{error}\nWhat was downloaded are not the statistics of {chosen.name}, and was removed. Try again, on "
            f"another network if this one asks for a login; or fetch {chosen.reference.url} elsewhere to {path}."
        ) from error


def pinned(name: str) -> str:
    """The recorded hash of a protocol's reference numbers; empty if there is none.

    Raises:
        DistillkitError: when the lock file is damaged.
    """
    return str(read_recorded(lock_file(), str).get(name, ""))


def pin(name: str, sha256: str) -> None:
    """Record the hash of a protocol's reference numbers."""
    write_json(lock_file(), read_recorded(lock_file(), str) | {name: sha256})


def fetch_files(chosen: ProtocolPreset, reporter: Reporter, should_stop: Callable[[], int]) -> list[Path]:
    """Download what a protocol needs and is not here: the Inception network (verified) and reference statistics.
    `DISTILLKIT_MIRROR` replaces their hosts, and `HF_HUB_OFFLINE=1` forbids the network, as for teachers.

    Raises:
        DistillkitError: when something cannot be had or has another hash.
        Interrupted: after a signal.
    """
    wanted = [(chosen.reference.url, evaluation_folder() / chosen.reference.file, "")] if chosen.reference.url else []
    if chosen.extractor.startswith("inception"):
        wanted.insert(0, (INCEPTION_URL, evaluation_folder() / INCEPTION_FILE, INCEPTION_SHA256))
    for url, path, expected in wanted:
        if path.is_file():
            continue
        if forbidden():
            raise DistillkitError(f"HF_HUB_OFFLINE forbids to download {url}; place it at {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        obtain(url, path, reporter=reporter, expected_sha256=expected, should_stop=should_stop)
        if not expected:
            _require_statistics(path, chosen)
    return [path for _, path, _ in wanted]
