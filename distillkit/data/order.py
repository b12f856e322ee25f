"""The order of data that are read as a stream: shuffled anew in every epoch, by the seed and the position alone."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

from distillkit.contracts.random import Indices, SampleRNG

Integers = npt.NDArray[np.int64]

WITHIN_KEPT, BATCHES_KEPT = 8192, 64
"""Orders within blocks that are kept, and numbers of batches."""


class Blocks:
    """Consecutive samples that are read at once, such as a stretch of a tar file; blocks may differ in length.

    Args:
        lengths: (K,) samples of each block.
    """

    def __init__(self, lengths: Integers) -> None:
        self.lengths = lengths
        self.starts: Integers = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def samples(self) -> int:
        return int(self.starts[-1])

    def of(self, number: int) -> int:
        """The block that holds a sample."""
        return int(np.searchsorted(self.starts, number, side="right")) - 1


class Order:
    """Which sample a place of a batch is, for data of N samples in blocks and batches of B.

    Position p = step * B + index counts all samples that a training draws, whatever the number of processes. Epoch
    e = p // N shuffles the blocks and the samples of each block, and every sample comes once in it. The shuffled row is
    cut into `lanes`, and a batch takes B / lanes neighbours from every lane: neighbours in a batch come from distant
    blocks, and from one step to the next a place of the batch goes on in the block that it is in. So a process reads
    the blocks of its own places, a block that lies across two lanes apart, and holds one block for each of its lanes.

    Args:
        batch: samples of a step, of all processes.
        lanes: a divisor of `batch`.
    """

    def __init__(self, blocks: Blocks, batch: int, lanes: int) -> None:
        if batch % lanes:
            raise ValueError(f"{lanes} lanes do not divide a batch of {batch}")
        self.blocks, self.batch, self.lanes, self.count = blocks, batch, lanes, blocks.samples
        share, rows = batch // lanes, self.count // batch
        # The last row of a batch may be short: the first lanes have more of it.
        rest = np.clip(self.count % batch - share * np.arange(lanes), 0, share)
        self._lane_starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows * share + rest)])
        self._epochs: OrderedDict[tuple[int, int], tuple[Integers, Integers]] = OrderedDict()
        self._batches: OrderedDict[tuple[int, int, bytes], Integers] = OrderedDict()
        self._within: OrderedDict[tuple[int, int, int], Integers] = OrderedDict()

    def numbers(self, rng: SampleRNG, step: int, indices: Indices) -> Integers:
        """Numbers (B',) of the samples at these places of a step's batch.

        Raises:
            ValueError: for a place that the batch does not have.
        """
        places = np.asarray(indices, dtype=np.int64)
        if len(places) and int(places.max()) >= self.batch:
            raise ValueError(f"place {int(places.max())} of a batch of {self.batch}")
        # Batches are asked for once ahead and once when they are due.
        key = (rng.seed, step, places.tobytes())
        return _kept(self._batches, key, lambda: self._numbers(rng, step * self.batch + places), BATCHES_KEPT)

    def _numbers(self, rng: SampleRNG, positions: Integers) -> Integers:
        epochs, places = np.divmod(positions, self.count)
        rows, columns = np.divmod(places, self.batch)
        lanes, within_lane = np.divmod(columns, self.batch // self.lanes)
        shuffled = self._lane_starts[lanes] + rows * (self.batch // self.lanes) + within_lane
        out = np.empty_like(shuffled)
        for epoch in np.unique(epochs).tolist():
            order, ends = self._epoch(rng, epoch)
            mine = np.flatnonzero(epochs == epoch)
            at = np.searchsorted(ends, shuffled[mine], side="right")
            blocks = order[at]
            offsets = shuffled[mine] - (ends[at] - self.blocks.lengths[blocks])
            pairs = zip(blocks.tolist(), offsets.tolist(), strict=True)
            within = [self._order_within(rng, epoch, block)[offset] for block, offset in pairs]
            out[mine] = self.blocks.starts[blocks] + within
        return out

    def _epoch(self, rng: SampleRNG, epoch: int) -> tuple[Integers, Integers]:
        """The blocks in an epoch's order, and where each ends in the shuffled row."""

        def made() -> tuple[Integers, Integers]:
            drawn = rng.uniform("data/blocks", epoch, range(len(self.blocks))).numpy()
            order = np.argsort(drawn, kind="stable")
            return order, np.cumsum(self.blocks.lengths[order])

        return _kept(self._epochs, (rng.seed, epoch), made, 2)

    def _order_within(self, rng: SampleRNG, epoch: int, block: int) -> Integers:
        """The samples of a block in an epoch's order, from 0."""

        def made() -> Integers:
            first, length = int(self.blocks.starts[block]), int(self.blocks.lengths[block])
            drawn = rng.uniform("data/samples", epoch, range(first, first + length)).numpy()
            return np.argsort(drawn, kind="stable")

        return _kept(self._within, (rng.seed, epoch, block), made, WITHIN_KEPT)


def _kept(kept: OrderedDict[Any, Any], key: Any, made: Any, most: int) -> Any:
    """What is kept under a key, or made and kept; of more than `most` the oldest go."""
    if key not in kept:
        kept[key] = made()
        while len(kept) > most:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


def lanes_of(batch: int, block_bytes: int, budget: int) -> int:
    """How many lanes a batch has: the largest divisor of it whose blocks, two for each lane, fit into a budget."""
    most = max(1, budget // max(1, 2 * block_bytes))
    return next(lanes for lanes in range(min(batch, most), 0, -1) if batch % lanes == 0)
