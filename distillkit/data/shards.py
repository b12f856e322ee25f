"""Numbered files of tensors in one folder, and the manifest of those that were verified."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from distillkit.contracts.source import SourceJob
from distillkit.data.claims import Claims
from distillkit.errors import DistillkitError
from distillkit.files import canonical_json, note_use, write_bytes, write_json
from distillkit.locks import LOOK_SECONDS, held
from distillkit.models.hashes import content_hash
from distillkit.progress import Quiet
from distillkit.reading import Missing, Unreadable, read_json
from distillkit.tensors import mapped_tensors, read_with_metadata

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
LOCK, CLAIMS = ".manifest.lock", ".claims"
RECORD_SECONDS = 60.0
"""Between two records of the manifest while shards are made; a killed writer's later ones are hashed again."""
NAME = re.compile(r"shard-(\d{6,9})\.safetensors")
FORMAT = 2

LARGEST_HEADER, LARGEST_MANIFEST = 2**16, 64 * 2**20


@dataclass(frozen=True)
class Entry:
    """A shard that was found whole: the hash of its contents, and size and time of its file when it was."""

    sha256: str
    bytes: int
    mtime_ns: int


class Shards:
    """Safetensors files `shard-N`, each written whole or not at all, and of one identity.

    A shard is trusted where the manifest lists it with its present size and time; others are read and hashed once. So
    opening costs a look at each file, and what is torn or altered is found. Losing the manifest costs time alone.

    Args:
        folder: of the files; made when the first is written.
        identity: everything that determines their contents.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self.identity = folder, dict(identity)
        self.id = identity_hash(identity)
        self._verified = self._listed()

    def path(self, number: int) -> Path:
        return self.folder / f"shard-{number:06d}.safetensors"

    def is_whole(self, number: int) -> bool:
        """Whether the shard is there, whole and of this identity; a warning says so where it is damaged.

        Raises:
            DistillkitError: where a folder has its name.
        """
        path = self.path(number)
        if path.is_dir():
            raise DistillkitError(f"{path} is a folder and a file is due there; remove it")
        try:
            state = path.stat()
        except OSError:
            return False
        known = self._verified.get(number)
        if known and (known.bytes, known.mtime_ns) == (state.st_size, state.st_mtime_ns):
            return True
        self._verified.pop(number, None)
        if (sha256 := self._read_hash(path)) is None:
            return False
        self._verified[number] = Entry(sha256, state.st_size, state.st_mtime_ns)
        return True

    def verify(self, number: int) -> bool:
        """As `is_whole`, by reading the shard whatever the manifest says of it."""
        self._verified.pop(number, None)
        return self.is_whole(number)

    def written(self) -> list[int]:
        """The numbers of the shards whose files are there, whole or not."""
        found = (NAME.fullmatch(path.name) for path in self.folder.glob("shard-*.safetensors"))
        return sorted(int(match[1]) for match in found if match)

    def write(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard whole; one that is there is replaced."""
        path, sha256 = self.path(number), content_hash(tensors)
        write_bytes(path, save(dict(tensors), metadata={"id": self.id, "sha256": sha256}))
        state = path.stat()
        self._verified[number] = Entry(sha256, state.st_size, state.st_mtime_ns)

    def fill(
        self, numbers: range, content: Callable[[int], Mapping[str, Tensor]], advance: Callable[[int], None],
        found: Callable[[int], None] = lambda number: None,
    ) -> None:  # fmt: skip
        """Write those of these shards that are not whole; `advance(rows)` after each. It may be interrupted at any
        time, and complete shards stay. Several jobs that need the same ones, on one machine or on several that share
        the folder, make each once: one that another job is at work on is left to it, and waited for at the end.

        Args:
            found: hears the numbers of those that others have made meanwhile.

        Raises:
            WriteError: when they cannot be written.
        """
        left, recorded = [number for number in numbers if self._is_missing(number)], time.monotonic()
        if not left:
            self.record()
            return
        try:
            with Claims(self.folder / CLAIMS) as claims:
                if not (self.folder / MANIFEST).exists():
                    # So that people see whose they are even where this writer is killed.
                    self._record()
                while left:
                    elsewhere = []
                    for number in left:
                        if self.path(number).exists():
                            found(number)
                        elif claims.take(number):
                            self._make(number, content, advance, claims, found)
                        else:
                            elsewhere.append(number)
                        if time.monotonic() - recorded > RECORD_SECONDS:
                            self.record()
                            recorded = time.monotonic()
                    if len(elsewhere) == len(left):
                        # Whoever is at work on them may be killed, and leave them to this one after all.
                        time.sleep(LOOK_SECONDS)
                        advance(0)
                    left = elsewhere
        finally:
            self.record()

    def _is_missing(self, number: int) -> bool:
        """Whether a shard is to be made; a damaged file is removed, so that from then on one that is there is whole."""
        path = self.path(number)
        was_there = path.exists()
        if self.is_whole(number):
            return False
        if was_there:
            path.unlink(missing_ok=True)
        return True

    def _make(
        self, number: int, content: Callable[[int], Mapping[str, Tensor]], advance: Callable[[int], None],
        claims: Claims, found: Callable[[int], None],
    ) -> None:  # fmt: skip
        """Write a shard that was claimed, unless another has made it just before."""
        rows = 0
        try:
            if not self.path(number).exists():
                tensors = content(number)
                self.write(number, tensors)
                rows = len(next(iter(tensors.values())))
        finally:
            claims.give_back(number)
        if rows:
            advance(rows)
        else:
            found(number)

    def share(
        self, job: SourceJob, doing: str, unit: str, total: int, make: Callable[[Callable[[int], None]], None],
        kept: str = "complete ones", during: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:  # fmt: skip
        """Make this process' part of what is missing, and have every process know of all parts. Called by all of them.

        Args:
            doing: title of the progress, such as "encoding prompts".
            total: units of all processes; 0 where this one has nothing to make.
            make: makes this process' part, and calls what it is given with the units after each shard.
            kept: what stays after an interruption, for people.
            during: what every process is in while the parts are made, also one that has none to make.

        Raises:
            Interrupted: after a signal; complete shards stay.
        """

        def stop_if_asked() -> None:
            if job.should_stop():
                raise job.interrupted(f"stopped while {doing}; {kept} stay in {self.folder}")

        with during():
            if total:
                with (job.task or Quiet().task)(doing, total, unit) as bar:

                    def advance(made: int) -> None:
                        bar.advance(min(made * job.world, total))
                        stop_if_asked()

                    make(advance)
        # Every process stops here or none: one that went on would wait for the others at the barrier.
        stop_if_asked()
        # In turn, so that no process writes over what another has just recorded.
        for turn in range(job.world):
            job.barrier()
            if turn == job.rank:
                self.record()
        job.barrier()

    def opened(self) -> None:
        """Add to the manifest, as `record` does, and note the use of the folder."""
        self.record()
        note_use(self.folder / MANIFEST)

    def mapped(self, number: int) -> dict[str, Tensor]:
        """The shard's tensors, memory-mapped.

        Raises:
            DistillkitError: when it is gone or damaged.
        """
        return mapped_tensors(self.path(number), most=LARGEST_HEADER)

    def refresh(self) -> None:
        """Take over what other processes have recorded."""
        self._verified = {**self._listed(), **self._verified}

    def record(self) -> None:
        """Add what is known to be whole to the manifest. Where that is impossible, shards are hashed again next time.

        Writers take turns by a lock; where the folder's filesystem has none, two that record at the same time may lose
        each other's entries, never a shard.
        """
        if self._verified.items() <= self._listed().items():
            return
        with held(self.folder / LOCK, lambda: None):
            self._record()

    def _record(self) -> None:
        listed = self._listed()
        entries = sorted({**listed, **self._verified}.items())
        manifest = {
            "format": FORMAT,
            "identity": self.identity,
            "shards": {str(number): asdict(entry) for number, entry in entries},
        }
        try:
            write_json(self.folder / MANIFEST, manifest)
        except DistillkitError as error:
            log.info("%s", error)

    def _listed(self) -> dict[int, Entry]:
        """The manifest's entries; none where it is absent, damaged or of another form."""
        path = self.folder / MANIFEST
        try:
            shards = read_json(path, most=LARGEST_MANIFEST)["shards"]
            return {int(number): Entry(**entry) for number, entry in shards.items()}
        except Missing:
            return {}
        except (Unreadable, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s cannot be read (%s); the files that it lists are verified again", path, error)
            return {}

    def _read_hash(self, path: Path) -> str | None:
        """The hash of a file's contents where it is the one recorded in it, with this identity."""
        try:
            tensors, metadata = read_with_metadata(path)
        except Unreadable as error:
            log.warning("%s is damaged (%s); it will be made again", path, error)
            return None
        sha256 = content_hash(tensors)
        if metadata.get("id") != self.id or metadata.get("sha256") != sha256:
            log.warning("%s does not match its recorded hash; it will be made again", path)
            return None
        return sha256


def identity_of(folder: Path) -> dict[str, Any] | None:
    """What the shards of a folder depend on, as its manifest says; None where it does not."""
    try:
        identity = read_json(folder / MANIFEST, most=LARGEST_MANIFEST)["identity"]
    except (Unreadable, KeyError, TypeError):
        return None
    return identity if isinstance(identity, dict) else None


def identity_hash(identity: Mapping[str, Any]) -> str:
    """16 hexadecimal characters: a folder's name for what depends on all of this."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]
