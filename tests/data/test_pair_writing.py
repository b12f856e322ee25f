"""Pairs by many writers at once: each shard is made once, and what a killed writer has claimed falls to the others."""

import os
import threading
import time

import pytest
import torch

from distillkit.data.claims import Claims
from distillkit.data.pair_notes import described, note_use, used_by
from distillkit.data.pair_store import SHARD_PAIRS, PairStore
from distillkit.jobs.pair_checks import compare, verify_pairs
from distillkit.jobs.pairs import make_pairs
from tests.data.teachers import linear_teacher
from tests.killing import killed

CPU = torch.device("cpu")
SHAPE = (1, 4, 4)
SHARDS = 6
COUNT = SHARDS * SHARD_PAIRS


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("distillkit.data.shards.LOOK_SECONDS", 0.01)


def store_in(root, **options):
    return PairStore(linear_teacher(SHAPE), root=root, **options)


def make(store, stop=lambda: None, **options):
    """Pairs that were made here, and that there are more than before."""
    made, found = [], []

    def advance(pairs):
        made.append(pairs)
        stop()

    store.make(COUNT, CPU, advance=advance, found=found.append, **options)
    return sum(made), sum(made) + len(found) * store.shard


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    store = store_in(tmp_path_factory.mktemp("alone"))
    store.make(COUNT, CPU, advance=lambda made: None)
    return store.open(COUNT, CPU).select(range(COUNT)).sample


def same_as(alone, store):
    return torch.equal(
        PairStore(store.teacher, root=store.folder.parent).open(COUNT, CPU).select(range(COUNT)).sample, alone
    )


def test_one_writer_makes_what_a_run_makes(tmp_path, alone):
    store = store_in(tmp_path)
    assert make(store) == (COUNT, COUNT) and same_as(alone, store)
    assert make(store_in(tmp_path)) == (0, 0)
    assert not (store.folder / ".claims").exists()


def test_writers_at_one_time_make_each_shard_once(tmp_path, alone):
    solved, counts = [], {}

    def work(name):
        store = store_in(tmp_path)
        solve = store.solve
        store.solve = lambda number, device: solved.append(number) or time.sleep(0.01) or solve(number, device)
        counts[name] = make(store)

    writers = [threading.Thread(target=work, args=(name,)) for name in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(solved) == list(range(SHARDS))
    assert sum(made for made, _ in counts.values()) == COUNT
    assert all(seen == COUNT for _, seen in counts.values()), "every writer ends when all shards are there"
    assert same_as(alone, store_in(tmp_path))


def test_parts_are_made_without_waiting_and_are_the_whole(tmp_path, alone):
    for k in (2, 0, 1):
        store = store_in(tmp_path)
        assert make(store, rank=k, world=3) == (COUNT // 3, COUNT // 3)
    assert same_as(alone, store)


def test_a_damaged_shard_is_made_again(tmp_path, alone):
    store = store_in(tmp_path)
    make(store)
    path = store.shards.path(2)
    path.write_bytes(path.read_bytes()[:-7])
    assert make(store_in(tmp_path)) == (SHARD_PAIRS, SHARD_PAIRS) and same_as(alone, store)


@pytest.mark.parametrize("at", [3, 6, 11, 13, 14, 18, 200])
def test_a_writer_that_is_killed_anywhere_costs_a_shard_at_most(at, tmp_path, alone):
    """Killed before its k-th change of the folder; its machine is this one, so its claim is nobody's at once."""
    folder = store_in(tmp_path).folder
    killed(lambda: make(store_in(tmp_path)), folder, at)
    whole = len(list(folder.glob("shard-*")))
    began = time.monotonic()
    made, seen = make(store_in(tmp_path))
    assert time.monotonic() - began < 30, "nobody waits for a lease of one that is known to be gone"
    assert made == seen == COUNT - whole * SHARD_PAIRS and same_as(alone, store_in(tmp_path))
    assert not list(folder.glob(".*.tmp")) and not (folder / ".claims").exists()


def test_interrupted_between_shards(tmp_path):
    class Stopped(Exception):
        pass

    store, calls = store_in(tmp_path), []

    def stop():
        calls.append(1)
        if len(calls) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        make(store, stop)
    assert len(store.shards.written()) == 2 and not (store.folder / ".claims").exists()
    assert make(store_in(tmp_path))[0] == COUNT - 2 * SHARD_PAIRS


def test_a_claim_is_one_writers(tmp_path):
    with Claims(tmp_path / "c") as one, Claims(tmp_path / "c") as other:
        assert one.take(3) and not other.take(3) and other.take(4)
        one.give_back(3)
        assert other.take(3)
    assert not (tmp_path / "c").exists()


def test_a_claim_of_another_machine_is_left_after_its_lease(tmp_path):
    with Claims(tmp_path, lease=60) as here:
        claim = tmp_path / "000003"
        claim.write_text("elsewhere:1:abcd")
        assert not here.take(3)
        os.utime(claim, (time.time() - 61, time.time() - 61))
        assert here.take(3) and claim.read_text().endswith(here._token)
        # Whoever has lost a claim does not take it from the one that has it now.
        claim.write_text("elsewhere:2:abcd")
        here.give_back(3)
        assert claim.exists()


def test_a_claim_is_renewed_while_its_writer_lives(tmp_path):
    with Claims(tmp_path, lease=0.4) as here, Claims(tmp_path, lease=0.4) as other:
        assert here.take(1)
        # As seen from another machine, where only its age tells.
        (tmp_path / "000001").write_text(f"elsewhere:{here._token.partition(':')[2]}")
        until = time.monotonic() + 1.2
        while time.monotonic() < until:
            assert not other.take(1)
            time.sleep(0.05)


def test_pairs_that_are_made_again_are_the_same_and_others_are_not(tmp_path):
    store = store_in(tmp_path)
    make(store)
    assert max(compare(store, number, CPU) for number in (0, 300, COUNT - 1)) < 1e-5
    wrong = linear_teacher(SHAPE, weight=0.6)
    wrong.spec = store.teacher.spec
    other = PairStore(wrong, root=tmp_path / "x")
    other.shards.folder = store.folder
    assert compare(other, 0, CPU) > 1e-2


def test_pairs_of_another_teacher_are_not_whole_when_those_that_were_looked_at_are_made_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path))
    monkeypatch.setattr("distillkit.jobs.pair_checks.compare", lambda store, number, device: 0.5)
    teacher = linear_teacher(SHAPE)
    make_pairs(teacher, count=300, quiet=True)
    found = verify_pairs(teacher, count=300, remake=1, fix=True, quiet=True)
    assert (len(found.different), found.fixed, found.whole) == (1, 1, False)


def test_what_is_noted_beside_pairs(tmp_path):
    store = store_in(tmp_path)
    make(store)
    for name in ("a", "b", "a"):
        (tmp_path / name).mkdir(exist_ok=True)
        note_use(store.folder, store.teacher, tmp_path / name)
    assert described(store.folder) == "linear" and used_by(store.folder) == [str(tmp_path / "a"), str(tmp_path / "b")]
    (store.folder / "used-by.json").write_text("[1")
    (store.folder / "about.json").write_text("{")
    assert used_by(store.folder) == [] and described(store.folder) == ""
