"""Features of a long evaluation: kept in a file as they come, so that it can be resumed and read more than once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillkit.contracts.random import SampleRNG
from distillkit.evaluation.moments import BLOCK, Moments
from distillkit.files import write_json, writing
from distillkit.reading import Unreadable, read_mapping

GROUPS = 10
"""Of the jackknife."""


class FeatureFile:
    """Rows of float32 on disk, appended in order. What was written before counts, but for a torn last row.

    Args:
        path: the file; made if it is not there.
        dim: numbers in a row.
    """

    def __init__(self, path: Path, dim: int) -> None:
        self.path, self.dim = path, dim
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if path.stat().st_size % (4 * dim):
            self.cut(len(self))

    def __len__(self) -> int:
        return self.path.stat().st_size // (4 * self.dim)

    def cut(self, count: int) -> None:
        """Keep the first `count` rows."""
        with self.path.open("rb+") as file:
            file.truncate(4 * self.dim * count)

    def add(self, features: Tensor) -> bytes:
        """Append features (B, dim); returns what was written.

        Raises:
            ValueError: when a feature is not finite.
        """
        if not torch.isfinite(features).all():
            raise ValueError("features are not finite: the images hold NaN or infinity")
        data: bytes = features.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4").tobytes()
        with self.path.open("ab") as file:
            file.write(data)
        return data

    def blocks(self, size: int = BLOCK) -> Iterator[Tensor]:
        """All rows in order, (size, dim) float32 at a time."""
        with self.path.open("rb") as file:
            while len(numbers := np.fromfile(file, "<f4", size * self.dim)):
                yield torch.from_numpy(numbers.reshape(-1, self.dim))

    def all(self) -> Tensor:
        """All rows at once, (N, dim) float32."""
        return torch.cat([*self.blocks()]) if len(self) else torch.empty(0, self.dim)


def groups_of(count: int, groups: int = GROUPS) -> Tensor:
    """(count,) int64: a random group for each sample, all of one size up to one sample.

    They depend on the sample's index alone. Index mod groups would not do: with labels index mod classes, groups
    would be classes.
    """
    order = SampleRNG(0).uniform("jackknife group", 0, range(count)).argsort(stable=True)
    return torch.empty(count, dtype=torch.int64).scatter_(0, order, torch.arange(count) % groups)


def moments_of(features: FeatureFile, dim: int, chosen: Tensor | None = None) -> Moments:
    """Moments of the first `dim` columns of all rows, or of those that `chosen` (N,) bool marks."""
    moments, start = Moments(dim), 0
    for block in features.blocks():
        rows = block[:, :dim] if chosen is None else block[chosen[start : start + len(block)], :dim]
        start += len(block)
        if len(rows):
            moments.add(rows)
    return moments.finish()


class Kept:
    """What is kept of every sample: its features, and the hash of what was decoded, in files that outlive the process.

    What was there before counts as far as it was sealed and its hash is right: a power loss may leave zeros, which are
    features like any others.

    Args:
        folder: where the files are.
        dim: features of a sample. row: numbers kept of it, class probabilities and the like included.

    Attributes:
        notes: what was sealed with the samples; empty where there are none.
        damaged: whether what was there was not what had been sealed, and was dropped.
    """

    def __init__(self, folder: Path, dim: int, row: int) -> None:
        self.folder, self.dim = folder, dim
        self.rows = FeatureFile(folder / "features.f32", row)
        self._hashes, self._seal = folder / "samples.sha256", folder / "seal.json"
        self._hashes.touch()
        count, sha256, self.notes = self._sealed()
        there = min(len(self.rows), self._hashes.stat().st_size // 32)
        self.cut(min(count, there))
        self.damaged = count > 0 and (there < count or self.sha256 != sha256)
        if self.damaged:
            self.cut(0)
        if not len(self):
            self.notes = {}

    def __len__(self) -> int:
        return len(self.rows)

    def cut(self, count: int) -> None:
        """Keep the first `count` samples."""
        self.rows.cut(count)
        with self._hashes.open("rb+") as file:
            file.truncate(32 * count)
        self._digests = [hashlib.sha256(), hashlib.sha256()]
        for digest, path in zip(self._digests, (self.rows.path, self._hashes), strict=True):
            with path.open("rb") as file:
                while part := file.read(2**20):
                    digest.update(part)

    def add(self, rows: Tensor, decoded: Tensor) -> None:
        """Append rows (B, row) and the hashes of the decoded samples (B, ...) that they were made from.

        Raises:
            ValueError: when a feature is not finite.
            WriteError: when the disk refuses them.
        """
        samples = decoded.cpu().contiguous().numpy()
        hashes = b"".join(hashlib.sha256(sample.tobytes()).digest() for sample in samples)
        with writing(self.folder):
            self._digests[0].update(self.rows.add(rows))
            with self._hashes.open("ab") as file:
                file.write(hashes)
        self._digests[1].update(hashes)

    @property
    def sha256(self) -> str:
        """Hash of all that is kept."""
        return hashlib.sha256(b"".join(digest.digest() for digest in self._digests)).hexdigest()

    def seal(self, notes: Mapping[str, Any]) -> None:
        """Vouch for what is kept, so that another process counts on it; with notes for that process."""
        write_json(self._seal, {"count": len(self), "sha256": self.sha256, "notes": dict(notes)})

    def _sealed(self) -> tuple[int, str, dict[str, Any]]:
        try:
            body = read_mapping(self._seal)
            return max(0, int(body["count"])), str(body["sha256"]), dict(body["notes"])
        except (Unreadable, ValueError, KeyError, TypeError):
            return 0, "", {}

    def parts(self) -> tuple[bytes, bytes]:
        """The files' contents, for another process."""
        return self.rows.path.read_bytes(), self._hashes.read_bytes()

    def append(self, parts: tuple[bytes, bytes]) -> None:
        """Take in what another process kept."""
        for path, part in zip((self.rows.path, self._hashes), parts, strict=True):
            with path.open("ab") as out:
                out.write(part)

    @property
    def features(self) -> Tensor:
        """(N, dim) float32."""
        return self.rows.all()[:, : self.dim]

    @property
    def probabilities(self) -> Tensor:
        """(N, row - dim) float32: what is kept behind the features."""
        return self.rows.all()[:, self.dim :]

    @property
    def samples_sha256(self) -> str:
        """Hash over the samples' hashes in order: the same for any batch size and number of processes."""
        return hashlib.sha256(self._hashes.read_bytes()).hexdigest()
