"""Streams for tests: tar files in fsspec's memory, a filesystem that fails now and then, and latents in small."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Mapping, Sequence
from typing import ClassVar

import fsspec
import numpy as np
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import save

from tests.data.test_images import encoded, picture


def packed(samples: Sequence[Mapping[str, bytes]], first: int = 0) -> bytes:
    """A tar file of samples, whose members are named by number and ending."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number, sample in enumerate(samples, first):
            for ending, data in sample.items():
                info = tarfile.TarInfo(f"{number:06d}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def pictured(count: int, first: int = 0, **options) -> list[dict[str, bytes]]:
    """Samples of an image, whose first pixel tells its number, with a caption and a class."""
    return [
        {"png": encoded(picture(k, **options)), "txt": f"picture {k}".encode(), "cls": str(k % 10).encode()}
        for k in range(first, first + count)
    ]


def npy(array: np.ndarray | torch.Tensor) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(array))
    return out.getvalue()


def tensors(metadata: Mapping[str, str] | None = None, **values: torch.Tensor) -> bytes:
    return save(values, metadata=dict(metadata) if metadata else None)


def in_memory(name: str, lengths: Sequence[int], samples: Sequence[Mapping[str, bytes]]) -> str:
    """Tar files of these lengths at memory://name/00.tar and on; their pattern."""
    system, at = fsspec.filesystem("memory"), 0
    for number, length in enumerate(lengths):
        system.pipe_file(f"/{name}/{number:02d}.tar", packed(samples[at : at + length], at))
        at += length
    return f"memory://{name}/{{00..{len(lengths) - 1:02d}}}.tar"


class Flaky(MemoryFileSystem):
    """fsspec's memory under another protocol. Of the ranges of bytes that are read, every n-th fails twice before it is
    read; where n is 1, all fail always."""

    protocol = "flaky"
    cachable = False
    every, reads, failures = 3, 0, 0
    ranges: ClassVar[list[tuple[str, int, int]]] = []
    lock = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://"))

    def cat_file(self, path, start=None, end=None, **options):
        with self.lock:
            Flaky.reads += 1
            Flaky.ranges.append((path, start, end))
            number = list(dict.fromkeys(Flaky.ranges)).index((path, start, end)) + 1
            fails = Flaky.every and number % Flaky.every == 0
            fails = fails and (Flaky.every == 1 or Flaky.ranges.count((path, start, end)) <= 2)
            Flaky.failures += bool(fails)
        if fails:
            raise ConnectionResetError("reset by s3://me:secret@host/x?token=secret\nsecret=1")
        return super().cat_file(path, start=start, end=end, **options)


def flaky(every: int) -> type[Flaky]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.every, Flaky.reads, Flaky.failures, Flaky.ranges = every, 0, 0, []
    return Flaky
