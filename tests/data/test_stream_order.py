"""The order of a stream: every sample once an epoch, a function of seed and position, whatever the processes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit import SampleRNG
from distillkit.data.order import Blocks, Order, lanes_of

UNEQUAL = [5, 1, 8, 3, 3, 7, 2, 9, 4]


def order_of(lengths, batch, lanes=None):
    return Order(Blocks(np.array(lengths, np.int64)), batch, lanes or batch)


def drawn(order, steps, seed=0, indices=None):
    indices = range(order.batch) if indices is None else indices
    return np.concatenate([order.numbers(SampleRNG(seed), step, indices) for step in range(steps)])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.sampled_from([(1, 1), (4, 2), (6, 6), (8, 1), (12, 4)]))
def test_every_sample_comes_once_in_an_epoch(lengths, shape):
    batch, lanes = shape
    order = order_of(lengths, batch, lanes)
    count, epochs = sum(lengths), 3
    numbers = drawn(order, -(-epochs * count // batch))
    for epoch in range(epochs):
        assert sorted(numbers[epoch * count : (epoch + 1) * count]) == list(range(count))


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
def test_processes_and_passes_read_what_one_reads(lanes):
    """Two processes and one draw the same batches: a draw belongs to its place in the batch."""
    order = order_of(UNEQUAL, 8, lanes)
    whole = drawn(order, 20).reshape(20, 8)
    for cut in (1, 2, 4):
        parts = [drawn(order_of(UNEQUAL, 8, lanes), 20, indices=range(k, k + cut)).reshape(20, cut)
                 for k in range(0, 8, cut)]  # fmt: skip
        assert np.array_equal(np.concatenate(parts, 1), whole)


def test_a_resumed_run_goes_on_where_it_was():
    """From any step on, what is read is what an uninterrupted run reads; nothing is remembered between."""
    whole = drawn(order_of(UNEQUAL, 6), 30).reshape(30, 6)
    resumed = order_of(UNEQUAL, 6)
    assert np.array_equal([resumed.numbers(SampleRNG(0), step, range(6)) for step in range(17, 30)], whole[17:])


def test_seeds_and_epochs_differ():
    single = order_of([1] * 42, 6)
    first, second = np.split(drawn(single, 14), 2)
    assert not np.array_equal(first, second), "blocks come in another order too"
    order = order_of(UNEQUAL, 6)
    first, second = np.split(drawn(order, 14), 2)
    assert not np.array_equal(first, second), "every epoch has its own order"
    assert not np.array_equal(first, np.sort(first))
    assert not np.array_equal(drawn(order, 7), drawn(order, 7, seed=1))


def test_a_place_of_a_batch_stays_in_its_block_until_it_ends():
    """What bounds the memory and the reads: from step to step few blocks are new, and none is read by two processes but
    those that lie across their border."""
    lengths, batch, steps = [32] * 64, 8, 32 * 64 // 8
    order = order_of(lengths, batch)
    blocks = drawn(order, steps).reshape(steps, batch) // 32
    changes = (blocks[1:] != blocks[:-1]).sum()
    assert changes <= len(lengths), "each block is entered once"
    halves = [set(blocks[:, :4].ravel()), set(blocks[:, 4:].ravel())]
    assert len(halves[0] & halves[1]) <= 1
    assert all(len(set(row)) == batch for row in blocks), "neighbours in a batch come from different blocks"


def test_lanes_divide_the_batch_and_fit_the_budget():
    assert lanes_of(256, 2**20, 2**30) == 256
    assert lanes_of(256, 2**26, 2**28) == 2
    assert lanes_of(6, 2**20, 9 * 2**20) == 3
    assert lanes_of(7, 2**30, 1) == 1
    with pytest.raises(ValueError, match="divide"):
        order_of([4], 6, 4)
