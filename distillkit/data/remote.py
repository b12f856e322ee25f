"""Files of any filesystem that fsspec knows, read by ranges of bytes; what fails now and then is tried again."""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from distillkit.data.labels import shown
from distillkit.errors import DistillkitError, UsageError
from distillkit.text import printable, redacted

TRIES = 6
PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds before the second try, doubled with each, and at most."""
PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError, TypeError)
PERMANENT_NAMES = frozenset(
    {"OfflineModeIsEnabled", "RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError", "NoCredentialsError",
     "PartialCredentialsError", "ProfileNotFound"}
)  # fmt: skip
"""Failures that stay whatever is done; some by the names of their classes, whose packages may not be installed."""
PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs",
    "http": "aiohttp", "https": "aiohttp", "sftp": "paramiko", "ssh": "paramiko", "smb": "smbprotocol",
    "hdfs": "pyarrow", "webhdfs": "requests", "oci": "ocifs", "hf": "huggingface_hub",
}  # fmt: skip

CHUNK = 2**22
"""Bytes that reading one after the other fetches at once."""

Item = TypeVar("Item")
Value = TypeVar("Value")


def opened_filesystem(address: str) -> tuple[FileSystem, str]:
    """The filesystem of an address, and the path in it.

    Raises:
        UsageError: for a filesystem that is not known, or whose package is not installed.
        DistillkitError: when it refuses.
    """
    from fsspec.core import url_to_fs

    name = redacted(address)
    protocol = address.partition("://")[0].rpartition("::")[2] if "://" in address else "file"
    try:
        system, path = url_to_fs(os.path.expanduser(address) if protocol == "file" else address)  # noqa: PTH111
    except ImportError as error:
        package = PACKAGES.get(protocol)
        what = f"pip install {package}" if package else printable(str(error))[:200]
        raise UsageError(f"{name}: addresses of {protocol}:// need another package: {what}") from error
    except ValueError as error:
        raise UsageError(f"{name}: no filesystem {shown(protocol)}:// is known ({_reason(error)})") from error
    except Exception as error:  # every filesystem raises its own kinds
        raise DistillkitError(f"cannot open the filesystem of {name}: {_reason(error)}") from error
    return FileSystem(system, protocol), str(path)


@dataclass(frozen=True)
class FileSystem:
    """One of fsspec's, with retries.

    Args:
        system: an `AbstractFileSystem`.
        protocol: of its addresses.
    """

    system: Any
    protocol: str

    def address(self, path: str) -> str:
        """Of a path, for people."""
        whole = path if self.protocol == "file" or "://" in path else f"{self.protocol}://{path.lstrip('/')}"
        return shown(redacted(whole), 1000)

    def file(self, path: str) -> RemoteFile:
        """A file, whose size is asked for at once.

        Raises:
            UsageError: when there is none.
            DistillkitError: when that cannot be found out.
        """
        info = retried(lambda: self.system.info(path), self.address(path), "cannot be found")
        return self._file(path, dict(info))

    def glob(self, pattern: str) -> list[RemoteFile]:
        """Files by a pattern, sorted by name."""
        found = retried(lambda: self.system.glob(pattern, detail=True), self.address(pattern), "cannot be listed")
        return [self._file(path, dict(info)) for path, info in sorted(found.items())]

    def _file(self, path: str, info: dict[str, Any]) -> RemoteFile:
        if info.get("type", "file") != "file":
            raise UsageError(f"{self.address(path)} is no file but a {shown(str(info['type']))}: name files")
        size = info.get("size")
        if not isinstance(size, int) or size < 0:
            raise DistillkitError(f"{self.address(path)}: its filesystem does not say how large it is")
        return RemoteFile(self, path, size, info)


@dataclass(frozen=True)
class RemoteFile:
    """A file that is read by ranges.

    Args:
        info: what its filesystem says of it.
        say: hears of failures that are tried again; called from any thread.
    """

    filesystem: FileSystem
    path: str
    size: int
    info: dict[str, Any] = field(repr=False)
    say: Callable[[str], None] = field(default=lambda text: None, repr=False)

    @cached_property
    def address(self) -> str:
        return self.filesystem.address(self.path)

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`; all of them or an error.

        Raises:
            DistillkitError: when they cannot be had after several tries.
        """
        if end <= start:
            return b""

        def once() -> bytes:
            data = bytes(self.filesystem.system.cat_file(self.path, start=start, end=end))
            if len(data) > end - start:
                raise TypeError("the server gives the whole file where a part of it is asked for")
            if len(data) < end - start:
                raise OSError(f"{len(data):,} of {end - start:,} bytes came")
            return data

        return retried(once, self.address, f"cannot be read (bytes {start:,} to {end:,})", self.say)

    def stream(self) -> io.BufferedIOBase:
        """The file as one that Python's libraries read and seek in."""
        return RangeFile(self)


class RangeFile(io.BufferedIOBase):
    """A remote file to read from one end to the other, by chunks; what is skipped beyond a chunk is not fetched."""

    def __init__(self, remote: RemoteFile, chunk: int = CHUNK) -> None:
        self._remote, self._chunk = remote, chunk
        self._at, self._start, self._data = 0, 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + {0: 0, 1: self._at, 2: self._remote.size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def size(self) -> int:
        """As pyarrow asks for it."""
        return self._remote.size

    def read(self, size: int | None = -1) -> bytes:
        end = self._remote.size if size is None or size < 0 else min(self._at + size, self._remote.size)
        parts = []
        while self._at < end:
            if not self._start <= self._at < self._start + len(self._data):
                ahead = min(max(self._chunk, end - self._at), self._remote.size - self._at)
                self._start, self._data = self._at, self._remote.read(self._at, self._at + ahead)
            inside = self._at - self._start
            part = self._data[inside : inside + end - self._at]
            parts.append(part)
            self._at += len(part)
        return b"".join(parts)


def in_threads(work: Callable[[Item], Value], items: Iterable[Item], threads: int) -> Iterator[Value]:
    """What is made of each item, in order; after a failure no other is begun."""
    with ThreadPoolExecutor(threads, "files") as pool:
        waiting = [pool.submit(work, item) for item in items]
        try:
            for future in waiting:
                yield future.result()
        finally:
            for future in waiting:
                future.cancel()


def retried(
    action: Callable[[], Value], address: str, failing: str, say: Callable[[str], None] = lambda text: None
) -> Value:
    """What an action gives, which is tried again after failures that may pass.

    Args:
        failing: said of the address where it stays impossible.

    Raises:
        UsageError: where there is no such file.
        DistillkitError: where it stays impossible.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return action()
        except FileNotFoundError as error:
            raise UsageError(f"{address}: there is no such file") from error
        except DistillkitError:
            raise
        except Exception as error:  # every filesystem raises its own kinds
            if isinstance(error, PERMANENT) or type(error).__name__ in PERMANENT_NAMES or attempt == TRIES:
                tried = f" after {attempt} tries" if attempt > 1 else ""
                raise DistillkitError(
                    f"{address} {failing}{tried}: {_reason(error)}. Is the network there, and may this user read it?"
                ) from error
            say(f"{address}: {_reason(error)}; trying again ({attempt + 1} of {TRIES})")
            # Processes that failed together do not come back together.
            time.sleep(min(PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE) * (0.5 + random.random() / 2))
    raise AssertionError


def _reason(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0].rstrip(". ")
    return printable(redacted(f"{type(error).__name__}: {text}" if text else type(error).__name__))[:200]
