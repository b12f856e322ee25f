"""metrics.jsonl survives interruptions and whatever else was written into it; trackers are closed, and nothing else."""

import json
import math
import os

import pytest
import torch

from distillkit import DistillkitError
from distillkit.engine.metrics import Means, MetricsFile


@pytest.fixture
def log(tmp_path):
    return MetricsFile(tmp_path / "metrics.jsonl")


def test_cut_back_keeps_what_was_before_and_drops_what_is_no_entry(log):
    for step in (1, 2, 3, 4):
        log.append({"step": step, "loss/kl": 0.5})
    with log.path.open("ab") as file:
        for strange in (
            b"\xff\xfe\x00",
            b"[1, 2]",
            b'"text"',
            b"17",
            b'{"step": "two"}',
            b'{"no": 1}',
            b"",
            b'{"step": 1',
            b"[" * 100_000,
        ):
            file.write(strange + b"\n")
    log.append({"step": 2, "text": "line\u2028separator"})
    with log.path.open("ab") as file:
        file.write(b'{"step": 1, "torn": ')
    log.cut_back(2)
    assert [json.loads(line)["step"] for line in log.path.read_bytes().splitlines()] == [1, 2, 2]
    log.append({"step": 3})
    assert log.path.read_bytes().splitlines()[-1] == b'{"step": 3}'


def test_an_evaluation_that_is_repeated_is_dropped(log):
    log.append({"step": 1, "evaluation": {"value": 1.0}})
    log.append({"step": 2, "loss/kl": 0.5})
    log.append({"step": 2, "evaluation": {"value": 1.0}})
    log.cut_back(2, evaluated=True)
    assert len(log.path.read_bytes().splitlines()) == 3
    log.cut_back(2, evaluated=False)
    assert [sorted(json.loads(line)) for line in log.path.read_bytes().splitlines()] == [
        ["evaluation", "step"],
        ["loss/kl", "step"],
    ]


def test_a_preview_that_is_repeated_is_dropped(log):
    for step in (1, 2):
        log.append({"step": step, "preview": f"{step}.png", "clipped": 0.1})
    log.append({"step": 2, "evaluation": {"value": 1.0}})
    log.cut_back(2)
    assert len(log.path.read_bytes().splitlines()) == 3
    log.cut_back(2, previewed=False)
    assert [json.loads(line)["step"] for line in log.path.read_bytes().splitlines()] == [1, 2]
    log.cut_back(2, previewed=False, evaluated=False)
    assert [json.loads(line).get("preview") for line in log.path.read_bytes().splitlines()] == ["1.png"]


def test_a_cut_that_fails_leaves_the_old_log(log, monkeypatch):
    for step in (1, 2):
        log.append({"step": step})
    before = log.path.read_bytes()
    monkeypatch.setattr("distillkit.files.RETRY_SECONDS", ())

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DistillkitError):
        log.cut_back(1)
    assert log.path.read_bytes() == before
    assert [p.name for p in log.path.parent.iterdir()] == ["metrics.jsonl"]


def test_numbers_that_are_not_finite_are_text_at_any_depth(log):
    log.append({"step": 1, "a": math.nan, "evaluation": {"value": math.inf, "error": None}})
    assert json.loads(log.path.read_text()) == {"step": 1, "a": "nan", "evaluation": {"value": "inf", "error": None}}


class Alone:
    num_processes, process_index, device = 1, 0, torch.device("cpu")


def test_means_are_weighted_by_the_share_of_a_micro_batch():
    means = Means()
    means.add("loss", torch.tensor(1.0), 0.25)
    means.add("loss", torch.tensor(3.0), 0.75)
    means.add("norm", torch.tensor(2.0))
    assert means.read(Alone()) == {"loss": 2.5, "norm": 2.0}
    assert means.read(Alone()) == {}


def test_an_interval_that_is_saved_half_way_ends_with_the_same_means():
    whole, first, second = Means(), Means(), Means()
    for means in (whole, first):
        means.add("loss", torch.tensor(1.0), 0.25)
    second.load_state(first.state(Alone()), Alone())
    for means in (whole, second):
        means.add("loss", torch.tensor(3.0), 0.75)
    assert second.read(Alone()) == whole.read(Alone())
