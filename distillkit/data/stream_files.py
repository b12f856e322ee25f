"""Samples of a stream by number: tar or parquet files of any filesystem, of which a few blocks are in memory."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from threading import Lock
from typing import overload

import numpy as np

from distillkit.contracts.source import SourceJob
from distillkit.data.addresses import ending, files_at, is_remote
from distillkit.data.files import MOST_BYTES, ImageFiles, counted, size_text
from distillkit.data.folders import others
from distillkit.data.labels import shown
from distillkit.data.order import Blocks, Order, lanes_of
from distillkit.data.prompts import kept_texts
from distillkit.data.remote import RemoteFile, in_threads
from distillkit.data.stream_index import NO_LABEL, FileIndex, Format, Integers, Sample, Wanted, indexed, is_indexed
from distillkit.data.stream_parquet import ParquetFormat
from distillkit.data.stream_tars import TarFormat
from distillkit.downloads import DownloadNeeded, only_planned
from distillkit.errors import DistillkitError, UsageError
from distillkit.progress import Quiet
from distillkit.text import redacted

BUDGET = 2**30
"""Bytes of blocks that all processes of a job hold together."""
LARGEST_BLOCK = 2**23
FETCHERS, INDEXERS = 16, 8
LOOKED_AT = 64
"""Samples whose headers are read before a run: more would be as many requests."""


class StreamedFiles(ImageFiles):
    """The samples of a stream: numbered through all its files, which differ in length; captions, class numbers and
    places of all are known, and nothing else is in memory but the blocks that were read last.

    Args:
        pattern: the files, such as `s3://bucket/train-{0000..0099}.tar`.
        wanted: the columns that were asked for.
        job: whose progress shows the first reading.

    Raises:
        UsageError: when there are none, or a choice has to be made.
        DistillkitError: when they cannot be read.
    """

    looked_at = LOOKED_AT

    def __init__(self, pattern: str, wanted: Wanted, job: SourceJob | None = None) -> None:
        self.pattern, self.wanted = redacted(pattern), wanted
        if pattern.startswith("hf://") and only_planned(self.pattern):
            # The hub's own library would not even list it.
            raise DownloadNeeded(f"what {self.pattern} holds is known only when it has been read")
        self._unsaid: deque[str] = deque()
        self._lock = Lock()
        self._held: OrderedDict[int, Future[list[Sample]]] = OrderedDict()
        self._held_bytes = self._most_held = 0
        self._pool: ThreadPoolExecutor | None = None
        self.files = [replace(file, say=self._unsaid.append) for file in files_at(pattern)]
        kinds: dict[str, Format] = {".tar": TarFormat(), ".parquet": ParquetFormat()}
        self.format = kinds[ending(self.files[0])]
        new = [file for file in self.files if not is_indexed(self.format, file, wanted)]
        if new and is_remote(pattern) and only_planned(self.pattern):
            raise DownloadNeeded(f"what {self.pattern} holds is known only when it has been read once")
        shards = self._indexed(new, job)
        self.of_arrays = self._hold_arrays(shards)
        kept = [shard.has_arrays if self.of_arrays else shard.has_image for shard in shards]
        lengths = [int(taken.sum()) for taken in kept]
        self._first: Integers = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        self._places: Integers = np.concatenate([s.places[taken] for s, taken in zip(shards, kept, strict=True)])
        self._group_bytes = [shard.group_bytes for shard in shards]
        self.facts = {k: v for k, v in shards[0].facts.items() if all(s.facts.get(k) == v for s in shards)}
        names: Counter[str] = sum((shard.names for shard in shards), Counter())
        self.names = _Names(self)
        self._read_labels(shards, kept)
        self._texts = (
            [(s, taken) for s, taken in zip(shards, kept, strict=True)] if any(s.has_texts for s in shards) else []
        )
        self.member_names = sorted(names)
        left = sum(len(shard) for shard in shards) - len(self)
        kind = "arrays" if self.of_arrays else "images"
        self.left_out = [f"{counted(left, 'sample')} without {kind}"] if left else []
        empty = sum(not length for length in lengths)
        self.notes = [
            f"a stream of {counted(len(self.files), 'file')} with {min(lengths):,} to {max(lengths):,} samples"
            + (f", {empty:,} of them empty" if empty else ""),
            *(["no classes"] if self.labels is None else []),
        ]
        whole = hashlib.sha256()
        for shard in shards:
            whole.update(shard.digest().encode())
        self.fingerprint = whole.hexdigest()
        self.arrange(1)

    def __len__(self) -> int:
        return len(self._places)

    @cached_property
    def captions(self) -> Sequence[str] | None:  # type: ignore[override]
        """All of them, memory-mapped where they are many."""
        if not self._texts:
            return None
        texts = kept_texts(
            text
            for shard, taken in self._texts
            for text, is_taken in zip(shard.captions(), taken, strict=True)
            if is_taken
        )
        return texts if any(texts) else None

    def arrange(self, batch: int, processes: int = 1) -> Order:
        """Cut the files into blocks for batches of so many samples, and give the order in which they are drawn.

        Blocks are as small as that many of them, two for each place of a batch, fit into `BUDGET`; those of parquet
        files are their row groups. They and the order are the same whatever the number of processes, of which each
        holds its share of the budget.
        """
        most_bytes = min(LARGEST_BLOCK, max(1, BUDGET // (2 * batch)))
        most = max(1, len(self) // (2 * batch))
        cut = [self._cut(shard, most_bytes, most) for shard in range(len(self.files))]
        lengths = np.concatenate([found[0] for found in cut])
        self.blocks, self._block_bytes = Blocks(lengths), np.concatenate([found[1] for found in cut])
        largest = int(self._block_bytes.max()) if len(self._block_bytes) else 1
        with self._lock:
            self._held.clear()
            self._held_bytes, self._most_held = 0, max(BUDGET // processes, 2 * largest)
        return Order(self.blocks, batch, lanes_of(batch, largest, BUDGET))

    def read(self, index: int, most: int = MOST_BYTES) -> bytes:
        return self.sample(index).image(most)

    def sample(self, number: int) -> Sample:
        """A sample, of which whole block is read where it is not in memory.

        Raises:
            DistillkitError: when it cannot be had after several tries.
        """
        block = self.blocks.of(number)
        return self._block(block).result()[number - int(self.blocks.starts[block])]

    def ahead(self, numbers: Iterable[int]) -> None:
        """Begin to read the blocks of these samples, by threads."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(FETCHERS, "fetch")
        for block in dict.fromkeys(self.blocks.of(number) for number in numbers):
            self._block(block, self._pool)

    def where(self, index: int) -> str:
        shard = self._shard_of(index)
        return f"{self.files[shard].address}, sample {index - int(self._first[shard]):,}"

    def said(self) -> list[str]:
        """What was tried again since it was last asked."""
        # Threads add to it meanwhile.
        return [self._unsaid.popleft() for _ in range(len(self._unsaid))]

    @property
    def held_bytes(self) -> int:
        """Of the blocks that are in memory."""
        return self._held_bytes

    @property
    def block_bytes(self) -> int:
        """Most bytes of a block."""
        return int(self._block_bytes.max())

    def _shard_of(self, number: int) -> int:
        return int(np.searchsorted(self._first, number, side="right")) - 1

    def _block(self, block: int, pool: ThreadPoolExecutor | None = None) -> Future[list[Sample]]:
        """A block in memory, or on its way there: read by this thread, or by one of a pool."""
        with self._lock:
            if (found := self._held.get(block)) is not None:
                self._held.move_to_end(block)
                return found
            future: Future[list[Sample]] = Future()
            self._held[block] = future
            self._held_bytes += int(self._block_bytes[block])
            while self._held_bytes > self._most_held:
                oldest, _ = self._held.popitem(last=False)
                self._held_bytes -= int(self._block_bytes[oldest])
        if pool is None:
            self._fetch(block, future)
        else:
            pool.submit(self._fetch, block, future)
        return future

    def _fetch(self, block: int, future: Future[list[Sample]]) -> None:
        first, length = int(self.blocks.starts[block]), int(self.blocks.lengths[block])
        file = self.files[self._shard_of(first)]
        try:
            future.set_result(self.format.block(file, self._places[first : first + length], self.wanted))
        except BaseException as error:
            with self._lock:
                # It is tried anew when it is asked for again.
                if self._held.pop(block, None) is not None:
                    self._held_bytes -= int(self._block_bytes[block])
            future.set_exception(error)

    def _cut(self, shard: int, most_bytes: int, most: int) -> tuple[Integers, Integers]:
        """Lengths and bytes of the blocks of a file."""
        places = self._places[self._first[shard] : self._first[shard + 1]]
        groups = self._group_bytes[shard]
        if len(groups):
            found, counts = np.unique(places[:, 0], return_counts=True)
            return counts.astype(np.int64), groups[found]
        lengths, sizes, at = [], [], 0
        starts, ends = places[:, 0], places[:, 1]
        while at < len(places):
            upto = int(np.searchsorted(ends, starts[at] + most_bytes, side="right"))
            upto = min(max(upto, at + 1), at + most, len(places))
            lengths.append(upto - at)
            sizes.append(int(ends[upto - 1] - starts[at]))
            at = upto
        return np.array(lengths, np.int64), np.array(sizes, np.int64)

    def _indexed(self, new: Sequence[RemoteFile], job: SourceJob | None) -> list[FileIndex]:
        """What every file holds; those that are new are read once, by threads, beginning at this process' share."""
        rank, world = (job.rank, job.world) if job else (0, 1)
        begin = len(new) * rank // world
        refused: list[str] = []
        if new:
            size = sum(file.size for file in new)
            if job:
                job.say(
                    f"reading {counted(len(new), 'new file')} of {self.pattern} once ({size_text(size)}), to learn "
                    "where their samples lie"
                )
            with (job.task if job and job.task else Quiet().task)("indexing the data", len(new), "files") as bar:
                for _ in in_threads(
                    lambda file: indexed(self.format, file, self.wanted, refused=refused.append),
                    [*new[begin:], *new[:begin]], INDEXERS,
                ):  # fmt: skip
                    bar.advance(1)
                    if job and job.should_stop():
                        raise job.interrupted("stopped while indexing the data; what was indexed is kept")
        if refused and job:
            job.say(f"note: what was learnt of the files cannot be kept ({refused[0]}), so every run reads them anew")
        return list(in_threads(lambda file: indexed(self.format, file, self.wanted), self.files, INDEXERS))

    def _hold_arrays(self, shards: Sequence[FileIndex]) -> bool:
        """Whether the samples are arrays (latents) and no images.

        Raises:
            UsageError: when there are neither.
        """
        images, arrays = (sum(int(getattr(s, name).sum()) for s in shards) for name in ("has_image", "has_arrays"))
        if not images and not arrays:
            held = others(sum((shard.names for shard in shards), Counter()))
            raise UsageError(f"no images or latents in {self.pattern}{': it holds ' + held[0] if held else ''}")
        if self.wanted.latent and not arrays:
            raise UsageError(f"--data-latent-column {shown(self.wanted.latent)}: {self.pattern} holds no arrays")
        return bool(self.wanted.latent) or not images

    def _read_labels(self, shards: Sequence[FileIndex], kept: Sequence[np.ndarray]) -> None:
        labels = np.concatenate([shard.labels[taken] for shard, taken in zip(shards, kept, strict=True)])
        self.labels = None
        if (labels != NO_LABEL).any():
            if (labels == NO_LABEL).any():
                missing = int((labels == NO_LABEL).argmax())
                raise DistillkitError(f"{self.where(missing)} has no class number and others have")
            if int(labels.max()) >= 10_000 + len(labels):
                raise DistillkitError(
                    f"{self.where(int(labels.argmax()))}: its class is {int(labels.max()):,}, and there are "
                    f"{len(labels):,} samples: number the classes from 0 without gaps"
                )
            self.labels = labels


class _Names(Sequence[str]):
    """Of samples, made when they are asked for: there may be many millions."""

    def __init__(self, files: StreamedFiles) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [self[k] for k in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self._files.where(number)
