"""Encodings of prompts: the same numbers from memory, a store and the encoder; made once, whatever stops it."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from distillkit import DistillkitError, PromptList, Prompts, load_teacher
from distillkit.contracts.source import SourceJob
from distillkit.data import encodings as module
from distillkit.data.encodings import EncodingStore, plan_encodings, with_encodings
from distillkit.data.pair_store import PairStore
from distillkit.testing.teachers import unconditional
from tests.data.cached import uses_are_noted
from tests.data.teachers import LENGTH, WIDTH, Letters
from tests.models import pipelines


def conditioner(count: int = 50, scale: float = 1.0, first: str = "a", dtype: str = "fp16") -> Prompts:
    texts = [first, *(f"number {k}" for k in range(1, count))]
    return Prompts(encoder=Letters(scale=scale)).with_prompts(PromptList.of(texts, "list")).with_rounding(dtype)


@pytest.fixture(autouse=True)
def _small_shards(tmp_path, monkeypatch):
    """Of four prompts each, in a cache of the test's own."""
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    row = 2 * LENGTH * WIDTH + LENGTH + 4 * WIDTH + 4 * 2 + 8 + 4
    monkeypatch.setattr(module, "SHARD_BYTES", 4 * row)
    return row


JOB = SourceJob(torch.device("cpu"))


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_memory_store_and_encoder_give_the_same_numbers(dtype):
    plain, keys = conditioner(dtype=dtype), torch.tensor([3, 0, 49, 3])
    exact = conditioner(dtype="fp32").encode(keys)
    assert torch.equal(plain.encode(plain.parse(["new"]))["text"], Letters().encode(["new"])["text"]), (
        "nor what is typed"
    )
    made = {where: with_encodings(plain, where, JOB).encode(keys) for where in ("memory", "store", "on-the-fly")}
    for where, found in made.items():
        assert set(found) == set(exact), where
        for name, value in found.items():
            assert value.dtype == exact[name].dtype and torch.equal(value, made["memory"][name]), (where, name)
            assert torch.equal(value, exact[name]) or (name == "text" and dtype != "fp32")
    difference = (made["store"]["text"] - exact["text"]).abs().max()
    assert difference <= {"fp16": 2**-11, "bf16": 2**-8, "fp32": 0}[dtype]
    assert (difference > 0) == (dtype != "fp32")


@pytest.mark.parametrize("where", ["memory", "store"])
def test_everything_is_encoded_once_and_the_encoder_is_freed(where):
    plain = conditioner()
    found = with_encodings(plain, where, JOB)
    seen, encoder = plain.encoder._seen, plain.encoder
    assert sorted(set(seen)) == sorted({*plain.texts, ""}) and len(seen) <= 50 + 2, "the first one for its size too"
    assert encoder._released
    before = len(seen)
    condition = found.encode(torch.arange(50))
    null = found.null(condition)
    assert len(seen) == before, "nothing was encoded again"
    fresh = Letters().null()
    assert torch.equal(null["text"], fresh["text"].expand(50, -1, -1)) and torch.equal(
        null["sizes"], condition["sizes"]
    )
    typed = found.parse(["number 3", "something new"])
    mixed = found.encode(typed.flip(0))
    assert torch.equal(mixed["text"][1], condition["text"][3]), "whatever is encoded with it"
    assert torch.equal(mixed["text"][0], Letters().encode(["something new"])["text"][0])
    again = with_encodings(conditioner(), where, JOB)
    if where == "store":
        uses_are_noted("encodings", lambda: with_encodings(conditioner(), where, JOB))
    assert (again.encoder._seen == []) == (where == "store")
    assert torch.equal(again.encode(torch.tensor([7]))["text"], condition["text"][7:8])


@pytest.mark.parametrize("family", [pipelines.sdxl, pipelines.pixart, pipelines.flux])
def test_conditions_of_every_family_can_be_stored(family, tmp_path):
    loaded = load_teacher(str(family(tmp_path / "tiny"))).conditioner
    plain, keys = loaded.with_prompts(PromptList.of(["one", "two", "one three"], "list")), torch.tensor([2, 0])
    stored, exact = with_encodings(plain, "store", JOB), plain.encode(keys)
    found = stored.encode(keys)
    assert set(found) == set(exact)
    assert all(torch.allclose(found[name], exact[name], atol=1e-5) for name in exact)
    if plain.has_null:
        null, fresh = stored.null(found), plain.null(exact)
        assert all(torch.allclose(null[name], fresh[name], atol=1e-5) for name in fresh)


@pytest.mark.parametrize("where", ["memory", "store"])
def test_a_model_without_a_null_condition_is_not_asked_for_one(where):
    plain = Prompts(encoder=Letters(guided=False)).with_prompts(PromptList.of(["a", "b"], "list"))
    found = with_encodings(plain, where, JOB)
    assert not found.has_null and torch.equal(found.encode(torch.tensor([1]))["text"], Letters().encode(["b"])["text"])


def test_a_store_is_another_one_for_whatever_it_depends_on():
    folders = [
        EncodingStore(prompts).folder
        for prompts in (
            conditioner(), conditioner(first="b"), conditioner(49), conditioner(scale=2.0), conditioner(dtype="bf16"),
        )
    ]  # fmt: skip
    assert len(set(folders)) == len(folders) and EncodingStore(conditioner()).folder == folders[0]


def test_what_stops_the_making_costs_a_shard_and_no_more():
    plain, signals = conditioner(), iter([0, 0, 2])
    with pytest.raises(InterruptedError, match="stopped while encoding prompts"):
        with_encodings(
            plain, "store",
            replace(JOB, should_stop=lambda: next(signals, 2), interrupted=InterruptedError),
        )  # fmt: skip
    store = EncodingStore(plain)
    assert store.missing() == 50 - 3 * 4
    # A file that a power loss has torn is made anew.
    torn = store.shards.path(2)
    torn.write_bytes(torn.read_bytes()[:-7])
    resumed = conditioner()
    found = with_encodings(resumed, "store", JOB)
    assert "number 1" not in resumed.encoder._seen and "number 4" in resumed.encoder._seen
    assert torch.equal(found.encode(torch.tensor([5]))["mask"], Letters().encode(["number 5"])["mask"])


def test_processes_share_the_work_by_number():
    store = EncodingStore(conditioner())
    store.begin()
    made: list[list[str]] = []
    for rank in range(3):
        plain = conditioner()
        EncodingStore(plain).make(rank, 3, lambda count: None)
        made.append(plain.encoder._seen)
    assert sorted(text for part in made for text in part) == sorted(conditioner().texts)
    assert made[1][0] == "number 4" and made[2][:2] == ["number 8", "number 9"]
    opened = EncodingStore(conditioner()).open()
    assert opened.encode(torch.tensor([11]))["numbers"].tolist() == [[9]]
    shutil.rmtree(store.folder)
    with pytest.raises(DistillkitError, match="DISTILLKIT_CACHE"):
        EncodingStore(conditioner()).open()


def test_what_does_not_fit_into_half_precision_is_named():
    huge = conditioner(scale=1e6)
    for where in ("memory", "store", "on-the-fly"):
        with pytest.raises(DistillkitError, match="of 'a' is not finite in fp16; --prompts-dtype bf16"):
            with_encodings(huge, where, JOB).encode(torch.tensor([0]))
    assert (
        with_encodings(conditioner(scale=1e6, dtype="bf16"), "store", JOB)
        .encode(torch.tensor([0]))["text"]
        .isfinite()
        .all()
    )
    with pytest.raises(DistillkitError, match="not finite in fp32"):
        with_encodings(conditioner(scale=float("inf"), dtype="fp32"), "memory", JOB)


def test_where_they_are_goes_by_size_disk_and_use(tmp_path, monkeypatch, _small_shards):
    row, prompts = _small_shards, conditioner()

    def planned(asked="auto", draws=None, free=10**12):
        monkeypatch.setattr(module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(free, 0, free))
        return plan_encodings(prompts, asked, draws)

    assert planned().where == "memory" and planned().memory_bytes == 50 * row
    monkeypatch.setattr(module, "IN_MEMORY", 50 * row - 1)
    store = planned()
    assert store.where == "store" and store.disk_bytes == 50 * row and "50 to make" in store.summary
    assert planned(draws=49).where == "on-the-fly" and "49 prompts" in planned(draws=49).summary
    assert planned(draws=50).where == "store"
    assert planned(free=99 * row).where == "on-the-fly" and planned(free=100 * row).where == "store"
    assert planned("store", free=50 * row).where == "store"
    with pytest.raises(DistillkitError, match="--prompts-encodings on-the-fly"):
        planned("store", free=49 * row)
    assert planned("on-the-fly").where == "on-the-fly"
    assert not (tmp_path / "cache").exists(), "a plan writes nothing"
    with_encodings(prompts, "store", JOB)
    # What is there is used, whatever is free.
    kept = planned(free=0, draws=1)
    assert kept.where == "store" and kept.disk_bytes == 0 and "to make" not in kept.summary


def test_pairs_hold_numbers_of_prompts_and_are_others_when_the_list_changes(tmp_path):
    def store(first, dtype="fp16"):
        teacher = unconditional()
        teacher.conditioner = conditioner(first=first, dtype=dtype)
        return PairStore(teacher, steps=1, root=tmp_path)

    one = store("a")
    one.make(4, torch.device("cpu"), advance=lambda count: None)
    assert {name: value.dtype for name, value in one.shards.mapped(0).items()} == {
        "sample": torch.float32, "key": torch.int64,
    }  # fmt: skip
    assert len({one.folder, store("b").folder, store("a", "bf16").folder}) == 3 and one.folder == store("a").folder
    assert one.shards.mapped(0)["key"].max() < 50
