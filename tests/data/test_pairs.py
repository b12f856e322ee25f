"""The pair store: right, restartable, verified, shared by processes, never mixed up."""

import json
import logging
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from distillkit import (
    ClassLabels,
    DistillkitError,
    Points,
    SampleRNG,
    SourceJob,
    Unconditional,
    UsageError,
    load_teacher,
)  # fmt: skip
from distillkit.contracts.denoiser import Denoiser
from distillkit.data.pair_store import SHARD_PAIRS, PairStore
from distillkit.data.pairs import PairsConfig, PairSource
from distillkit.data.shards import Shards
from distillkit.diffusion.schedules import EDMSchedule
from tests.conftest import HANG, environment, group_of
from tests.data.teachers import HalfSize, linear_teacher

CPU = torch.device("cpu")
SHAPE = (1, 4, 4)
TWO = 2 * SHARD_PAIRS
ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path):
    return PairStore(linear_teacher(SHAPE), root=tmp_path)


def again(store):
    """The same store as another process, or a later run, sees it."""
    return PairStore(store.teacher, steps=store.steps, root=store.folder.parent)


def make(store, count, **options):
    made = []
    store.make(count, CPU, advance=made.append, **options)
    return sum(made)


def test_pairs_are_the_ends_of_the_teachers_ode(store):
    make(store, 4)
    pairs = store.open(4, CPU).select([3, 0, 2])
    assert set(pairs.condition["labels"].tolist()) <= set(range(10))
    expected = store.teacher.sample(pairs.noise, pairs.condition)
    torch.testing.assert_close(pairs.sample, expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(pairs.sample[0], pairs.sample[1])


def test_pairs_of_the_embedded_digits_are_those_of_version_0_1(golden, tmp_path, monkeypatch):
    monkeypatch.setattr("distillkit.data.pair_store.SHARD_PAIRS", 16)
    known = golden("pairs_digits")
    store = PairStore(load_teacher("digits"), root=tmp_path)
    assert store.steps == known.description["steps"]
    make(store, 16)
    pairs = store.open(16, CPU).select(range(16))
    assert torch.equal(pairs.condition["labels"], known.tensors["keys"])
    assert torch.equal(pairs.noise[15], known.tensors["noise_row"])
    assert (pairs.sample - known.tensors["sample"]).abs().max() <= known.description["tolerance"]


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_solver_steps_and_guidance_reach_the_teacher(solver, tmp_path):
    teacher = linear_teacher(SHAPE)
    store = PairStore(teacher, steps=5, solver=solver, guidance=2.5, root=tmp_path)
    make(store, 8)
    pairs = store.open(8, CPU).select(range(8))
    expected = teacher.sample(pairs.noise, pairs.condition, steps=5, solver=solver, guidance=2.5)
    torch.testing.assert_close(pairs.sample, expected, rtol=1e-5, atol=1e-5)


def test_made_once_and_extended_later(store):
    assert make(store, SHARD_PAIRS) == SHARD_PAIRS
    first = store.open(SHARD_PAIRS, CPU).select(range(8)).sample
    assert make(again(store), SHARD_PAIRS) == 0
    assert make(again(store), SHARD_PAIRS + 1) == SHARD_PAIRS, "a larger set keeps what is there"
    assert torch.equal(again(store).open(SHARD_PAIRS + 1, CPU).select(range(8)).sample, first)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_no_holes_when_a_process_looks_after_another_has_written(store, order, tmp_path):
    """Cutting each process' own list of what is missing left shards to nobody."""
    for rank in order:
        make(again(store), 4 * SHARD_PAIRS, rank=rank, world=2)
    assert again(store).missing(4 * SHARD_PAIRS) == []
    alone = PairStore(store.teacher, root=tmp_path / "alone")
    make(alone, 4 * SHARD_PAIRS)
    numbers = list(range(0, 4 * SHARD_PAIRS, 7))
    one, two = (s.open(4 * SHARD_PAIRS, CPU).select(numbers) for s in (alone, again(store)))
    assert torch.equal(one.sample, two.sample) and torch.equal(one.noise, two.noise)


def test_jobs_that_need_the_same_shards_at_the_same_time_make_each_once(tmp_path, monkeypatch):
    monkeypatch.setattr("distillkit.data.shards.LOOK_SECONDS", 0.01)
    made, at_work, waited_for = [], threading.Event(), threading.Event()

    def content(number):
        made.append(number)
        if number == 0:
            # The other job meets this shard while it is being made, and goes on to the next.
            at_work.set()
            assert waited_for.wait(HANG)
        return {"sample": torch.full((4,), float(number))}

    def advance(rows):
        if rows == 0:
            waited_for.set()

    first = threading.Thread(target=lambda: Shards(tmp_path, {"a": 1}).fill(range(3), content, lambda rows: None))
    first.start()
    assert at_work.wait(HANG)
    second = Shards(tmp_path, {"a": 1})
    second.fill(range(3), content, advance)
    first.join()
    assert sorted(made) == [0, 1, 2] and all(second.is_whole(number) for number in range(3))
    assert not list(tmp_path.glob(".shard-*"))


PROCESS = """
import os
import torch, torch.distributed as dist
from distillkit import SourceJob
from distillkit.data.pairs import PairSource, PairsConfig
from tests.data.teachers import linear_teacher

rank = int(os.environ["RANK"])
dist.init_process_group("gloo")
source = PairSource(linear_teacher((1, 4, 4)), PairsConfig(count=1500))
pairs = source.open(SourceJob(torch.device("cpu"), rank=rank, world=2, barrier=dist.barrier))
print(len(pairs), float(pairs.select(range(0, 1500, 11)).sample.double().sum()))
dist.destroy_process_group()
"""


def test_two_processes_make_one_store(tmp_path, monkeypatch, warm):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    group = [environment(one) for one in group_of(2)]
    processes = warm.run_together([sys.executable, "-c", PROCESS], ROOT, group, HANG)
    assert [process.returncode for process in processes] == [0, 0], processes
    said = [process.stdout for process in processes]
    assert said[0] == said[1] and said[0].startswith("1500 ")
    source = PairSource(linear_teacher(SHAPE), PairsConfig(count=1500))
    listed = json.loads((source.store.folder / "manifest.json").read_text())["shards"]
    assert sorted(map(int, listed)) == list(range(6)), "neither process lost what the other recorded"
    assert source.plan().evaluations == 0


@pytest.mark.parametrize("damage", ["truncate", "flip", "foreign"])
def test_only_a_damaged_shard_is_made_again(store, damage, caplog, tmp_path):
    make(store, TWO)
    good = store.open(TWO, CPU).select(range(TWO)).sample
    path, other = store.shards.path(1), store.shards.path(0)
    data, stamp = bytearray(path.read_bytes()), other.stat().st_mtime_ns
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[-5] ^= 4
        path.write_bytes(data)
    else:
        foreign = PairStore(store.teacher, steps=4, root=tmp_path / "foreign")
        make(foreign, SHARD_PAIRS)
        path.write_bytes(foreign.shards.path(0).read_bytes())
    with caplog.at_level(logging.WARNING):
        assert again(store).missing(TWO) == [1]
    assert path.name in caplog.text
    with pytest.raises(DistillkitError, match=path.name):
        again(store).open(TWO, CPU)
    assert make(again(store), TWO) == SHARD_PAIRS
    assert other.stat().st_mtime_ns == stamp
    assert torch.equal(again(store).open(TWO, CPU).select(range(TWO)).sample, good)


def test_what_the_manifest_lists_is_not_read_again(store, monkeypatch):
    make(store, TWO)
    read = []
    monkeypatch.setattr("distillkit.data.shards.content_hash", lambda tensors: read.append(tensors) or "0")
    assert again(store).missing(TWO) == [] and not read
    (store.folder / "manifest.json").unlink()
    assert again(store).missing(TWO) == [0, 1] and len(read) == 2


@pytest.mark.parametrize("text", ["", "[]", "{", '{"shards": {"0": {"sha256": 1}}}', '{"shards": [1]}'])
def test_a_damaged_manifest_costs_time_alone(store, text):
    make(store, SHARD_PAIRS)
    manifest = store.folder / "manifest.json"
    manifest.write_text(text)
    other = again(store)
    assert other.missing(SHARD_PAIRS) == []
    other.open(SHARD_PAIRS, CPU)
    assert list(json.loads(manifest.read_text())["shards"]) == ["0"], "what was verified is recorded"


def test_a_folder_in_the_place_of_a_shard_is_named(store):
    store.shards.path(0).mkdir(parents=True)
    with pytest.raises(DistillkitError, match="shard-000000"):
        make(store, 1)


def test_a_teacher_that_diverges_makes_no_pairs(tmp_path):
    store = PairStore(linear_teacher(SHAPE, weight=float("nan")), root=tmp_path)
    with pytest.raises(DistillkitError, match="not finite"):
        make(store, 1)
    assert store.missing(1) == [0]


def identities():
    """A store for every single thing that pairs depend on, changed."""
    teacher = linear_teacher
    described = teacher(SHAPE)
    described.denoiser.description = {"kind": "x:Y", "arguments": {}}
    half = teacher(SHAPE)
    half.denoiser.half()
    spread = teacher(SHAPE)
    spread.denoiser.sigma_data = 1.0

    class Other(type(half.denoiser), Denoiser):
        pass

    other = teacher(SHAPE)
    other.denoiser.__class__ = Other
    return {
        "": (teacher(SHAPE), {}),
        "weights": (teacher(SHAPE, weight=0.25), {}),
        "recorded hash": (teacher(SHAPE, weights_sha256="0" * 64), {}),
        "sigma_max": (teacher(SHAPE, schedule=EDMSchedule(sigma_max=1.0)), {}),
        "sigma_min": (teacher(SHAPE, schedule=EDMSchedule(sigma_min=0.01)), {}),
        "rho": (teacher(SHAPE, schedule=EDMSchedule(rho=3.0)), {}),
        "sigma_data": (spread, {}),
        "network in the spec": (teacher(SHAPE, network={"kind": "x:Y", "arguments": {"width": 8}}), {}),
        "network": (described, {}),
        "class": (other, {}),
        "precision": (half, {}),
        "shape": (teacher((1, 4, 2)), {}),
        "rank": (teacher((4, 4)), {}),
        "classes": (teacher(SHAPE, ClassLabels(classes=9)), {}),
        "null label": (teacher(SHAPE, ClassLabels(classes=10, null_label=False)), {}),
        "no classes": (teacher(SHAPE, Unconditional()), {}),
        "codec": (teacher(SHAPE, codec=Points()), {}),
        "codec's fields": (teacher(SHAPE, codec=HalfSize()), {}),
        "codec's other fields": (teacher(SHAPE, codec=HalfSize(factor=4)), {}),
        "the teacher's steps": (teacher(SHAPE, solver_steps=4), {}),
        "steps": (teacher(SHAPE), {"steps": 5}),
        "the teacher's solver": (teacher(SHAPE, solver="euler"), {}),
        "solver": (teacher(SHAPE), {"solver": "ddim"}),
        "guidance": (teacher(SHAPE), {"guidance": 1.5}),
        "seed": (teacher(SHAPE), {"seed": 1}),
    }


def test_what_determines_the_pairs_determines_the_store(tmp_path, monkeypatch):
    ids = {name: PairStore(t, root=tmp_path, **options).shards.id for name, (t, options) in identities().items()}
    monkeypatch.setattr("distillkit.data.pair_store.SHARD_PAIRS", 128)
    ids["shard"] = PairStore(linear_teacher(SHAPE), root=tmp_path).shards.id
    same = {name: key for name, key in ids.items() if list(ids.values()).count(key) > 1}
    assert not same


def test_names_do_not_determine_the_store_nor_choose_its_place(tmp_path):
    plain = PairStore(linear_teacher(SHAPE), root=tmp_path)
    spec = plain.teacher.spec
    for name in ("../../x", "/abs/y", "..", "a b/\x1b[0m", ""):
        teacher = linear_teacher(SHAPE)
        teacher.spec = spec.model_copy(update={"name": name, "licence": "other", "source": "other"})
        store = PairStore(teacher, root=tmp_path)
        assert store.shards.id == plain.shards.id and store.folder.parent == tmp_path
        assert store.folder.name.replace("-", "").isalnum()


@pytest.mark.parametrize(("shape", "pairs"), [((1, 8, 8), 256), ((3, 32, 32), 256), ((4, 64, 64), 128), ((2**23,), 1)])
def test_shards_stay_small(shape, pairs, tmp_path):
    assert PairStore(linear_teacher(shape), root=tmp_path).shard == pairs


def test_batches_depend_on_seed_step_and_index_alone(store):
    make(store, TWO)
    pairs = store.open(TWO - 10, CPU)
    whole = pairs.batch(SampleRNG(0), 5, range(8))
    part = pairs.batch(SampleRNG(0), 5, range(4, 8))
    assert torch.equal(whole.noise[4:], part.noise) and torch.equal(whole.sample[4:], part.sample)
    assert torch.equal(whole.condition["labels"][4:], part.condition["labels"])
    assert not torch.equal(whole.noise, pairs.batch(SampleRNG(0), 6, range(8)).noise)
    assert not torch.equal(whole.noise, pairs.batch(SampleRNG(1), 5, range(8)).noise)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_opening_reads_nothing_and_a_batch_holds_its_rows_alone(tmp_path):
    def held(*kinds):
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return sum(int(fields[kind].split()[0]) for kind in kinds) / 1024

    teacher = linear_teacher((3, 64, 64), solver_steps=1, solver="euler")
    make(PairStore(teacher, root=tmp_path), 1000)
    store = PairStore(teacher, root=tmp_path)
    assert sum(path.stat().st_size for path in store.folder.iterdir()) > 45 * 2**20
    everything, own = held("RssAnon", "RssFile"), held("RssAnon")
    pairs = store.open(1000, CPU)
    assert held("RssAnon", "RssFile") - everything < 5
    for step in range(20):
        pairs.batch(SampleRNG(0), step, range(8))
    assert held("RssAnon") - own < 15, "pages of the files are the system's cache, not the process' own"


class Reports:
    def __init__(self, stop_after=None):
        self.advanced, self.titles, self.stop_after = [], [], stop_after

    @contextmanager
    def task(self, title, total, unit):
        self.titles.append((title, total, unit))
        yield self

    def advance(self, amount):
        self.advanced.append(amount)

    def should_stop(self):
        return 15 if self.stop_after is not None and len(self.advanced) >= self.stop_after else 0


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.usefixtures("cache")
def test_the_source_plans_makes_and_finds_its_pairs():
    source = PairSource(linear_teacher(SHAPE), PairsConfig(count="0.5k", guidance=2.0, steps=4))
    evaluations = 2 * (2 * 4 - 1)
    assert source.cost == 500 * evaluations and source.guidance == 2.0
    source.check()
    plan = source.plan()
    assert plan.evaluations == 512 * evaluations and "500" in plan.summary and "512 to make" in plan.summary
    assert not source.store.folder.exists(), "a plan makes nothing"
    reports, said = Reports(), []
    pairs = source.open(SourceJob(CPU, say=said.append, task=reports.task))
    assert any("kept 256 in a file, and the last is filled; 500 are used" in line for line in said)
    assert len(pairs) == 500 and reports.titles[0][1:] == (512, "pairs") and sum(reports.advanced) == 512
    on_disk = sum(path.stat().st_size for path in source.store.folder.glob("shard-*"))
    assert plan.disk_bytes == pytest.approx(on_disk, rel=0.05)
    later, said = PairSource(linear_teacher(SHAPE), source.config), []
    assert later.plan().evaluations == later.plan().disk_bytes == 0 and later.cost == source.cost
    later.open(SourceJob(CPU, say=said.append))
    assert "500" in said[0] and str(source.store.folder) in said[0]


@pytest.mark.usefixtures("cache")
def test_a_signal_stops_between_shards_and_complete_ones_stay():
    source, reports = PairSource(linear_teacher(SHAPE), PairsConfig(count=3 * SHARD_PAIRS)), Reports(stop_after=1)

    class Stopped(Exception):
        pass

    job = SourceJob(CPU, task=reports.task, should_stop=reports.should_stop, interrupted=Stopped)
    with pytest.raises(Stopped, match=str(source.store.folder)):
        source.open(job)
    later = PairSource(linear_teacher(SHAPE), source.config)
    assert later.store.missing(3 * SHARD_PAIRS) == [1, 2]
    assert not list(source.store.folder.glob(".*tmp"))
    assert len(later.open(SourceJob(CPU))) == 3 * SHARD_PAIRS


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("conditioner", [Unconditional(), ClassLabels(classes=10, null_label=False)])
def test_guidance_that_the_teacher_cannot_have_is_refused_before_pairs_are_made(conditioner):
    source = PairSource(linear_teacher(SHAPE, conditioner), PairsConfig(guidance=2.0))
    for way in (source.check, source.plan):
        with pytest.raises(UsageError, match="guidance 2"):
            way()
    PairSource(linear_teacher(SHAPE, conditioner), PairsConfig()).check()


@pytest.mark.usefixtures("cache")
def test_pairs_that_the_disk_cannot_hold_are_refused():
    with pytest.raises(DistillkitError, match="DISTILLKIT_CACHE"):
        PairSource(linear_teacher((3, 4096, 4096)), PairsConfig(count=100_000)).check()


def test_synthetic_pairs_have_the_shapes_and_conditions_of_real_ones():
    pairs = PairSource.synthetic(linear_teacher(SHAPE), CPU).batch(SampleRNG(0), 2, range(64))
    assert pairs.noise.shape == pairs.sample.shape == (64, *SHAPE)
    assert pairs.sample.abs().max() <= 1 < pairs.noise.abs().max()
    assert set(pairs.condition["labels"].tolist()) == set(range(10))
