"""The pair store: right, restartable, verified, shared, never mixed up."""

import logging

import pytest
import torch

from distillkit import SampleRNG
from distillkit.data.pairs import SHARD, PairStore
from distillkit.diffusion import heun, karras_sigmas

CPU = torch.device("cpu")


@pytest.fixture
def store(tiny_teacher, tmp_path):
    return PairStore(tiny_teacher, steps=3, root=tmp_path)


def make(store, count, **kwargs):
    made = []
    store.make(count, CPU, advance=made.append, **kwargs)
    return sum(made)


def test_pairs_are_the_ends_of_the_teachers_ode(store, tiny_teacher):
    make(store, 4)
    pairs = store.open(4, CPU).select(slice(0, 4))
    assert pairs.condition.labels is not None and pairs.condition.labels.max() < 10
    with torch.no_grad():
        again = heun(lambda x, s: tiny_teacher(x, s, pairs.condition), pairs.noise, karras_sigmas(3))
    torch.testing.assert_close(again, pairs.sample, rtol=1e-4, atol=1e-5)


def test_made_once_extended_later_and_the_same_for_any_number_of_processes(store, tiny_teacher, tmp_path):
    assert make(store, SHARD) == SHARD
    assert make(store, SHARD) == 0
    assert make(store, SHARD + 1) == SHARD, "a larger set keeps what is there"
    other = PairStore(tiny_teacher, steps=3, root=tmp_path / "other")
    for rank in (0, 1):
        missing_before = other.missing(SHARD + 1)
        assert missing_before
        other_rank = PairStore(tiny_teacher, steps=3, root=tmp_path / "other")
        # Each process sees the same list before any writes.
        other_rank.missing = lambda count: [0, 1]
        other_rank.make(SHARD + 1, CPU, rank=rank, world=2, advance=lambda n: None)
    a, b = store.open(SHARD + 1, CPU), other.open(SHARD + 1, CPU)
    assert torch.equal(a.sample, b.sample) and torch.equal(a.noise, b.noise)


@pytest.mark.parametrize("damage", ["truncate", "flip", "foreign"])
def test_only_a_damaged_shard_is_made_again(store, damage, caplog, tiny_teacher, tmp_path):
    make(store, 2 * SHARD)
    good = store.open(2 * SHARD, CPU).sample
    path, other = store._path(1), store._path(0)
    data, stamp = bytearray(path.read_bytes()), other.stat().st_mtime_ns
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[-5] ^= 4
        path.write_bytes(data)
    else:
        foreign = PairStore(tiny_teacher, steps=4, root=tmp_path / "foreign")
        make(foreign, SHARD)
        path.write_bytes(foreign._path(0).read_bytes())
    with caplog.at_level(logging.WARNING):
        assert store.missing(2 * SHARD) == [1]
    assert path.name in caplog.text and "made again" in caplog.text
    with pytest.raises(FileNotFoundError, match="1 pair shards are missing"):
        store.open(2 * SHARD, CPU)
    assert make(store, 2 * SHARD) == SHARD
    assert other.stat().st_mtime_ns == stamp
    assert torch.equal(store.open(2 * SHARD, CPU).sample, good)


def test_stop_in_the_middle_keeps_complete_shards(store):
    class Stop(Exception):
        pass

    def stop(made):
        raise Stop

    with pytest.raises(Stop):
        store.make(3 * SHARD, CPU, advance=stop)
    assert store.missing(3 * SHARD) == [1, 2]
    assert not list(store.folder.glob(".*tmp"))


def test_what_determines_the_pairs_determines_the_store(tiny_teacher, tmp_path):
    def store_id(**changes):
        return PairStore(tiny_teacher, root=tmp_path, **{"steps": 3, **changes}).id

    ids = {store_id(), store_id(steps=4), store_id(guidance=2.0), store_id(seed=1)}
    assert len(ids) == 4
    tiny_teacher.spec = tiny_teacher.spec.model_copy(update={"weights_sha256": "0" * 64})
    assert store_id() not in ids


def test_batches_depend_on_seed_step_and_index_alone(store):
    make(store, 64)
    pairs = store.open(64, CPU)
    whole = pairs.batch(SampleRNG(0), 5, range(8))
    part = pairs.batch(SampleRNG(0), 5, range(4, 8))
    assert torch.equal(whole.noise[4:], part.noise) and torch.equal(whole.sample[4:], part.sample)
    assert not torch.equal(whole.noise, pairs.batch(SampleRNG(0), 6, range(8)).noise)
    assert not torch.equal(whole.noise, pairs.batch(SampleRNG(1), 5, range(8)).noise)
