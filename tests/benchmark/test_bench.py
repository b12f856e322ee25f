"""`distillkit bench` through its entry point, on the mixture, where a training takes a second."""

import json
import re

import pytest

from distillkit.benchmark.results import read_results
from distillkit.evaluation.record import read_record

SUITE = """
name: small
title: A small <suite> & its report
teacher: mixture
budget: 60k
curve_points: 2
nfe: [2]
teacher_steps: [3, 5]
training: {batch: 64}
methods:
  consistency: {}
  kd: {pairs: {count: 256}}
  too-many-pairs: {method: kd, pairs: {count: 4096}}
quoted:
  - {kind: quoted, name: Somebody's, label: FID-50k, value: 1.5, nfe: 1, protocol: theirs, source: a paper}
"""


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "small.yaml").write_text(SUITE)
    return "small.yaml"


def test_a_bench_compares_reports_and_goes_on(inside, suite, tmp_path):
    planned = inside("bench", "--suite", suite, "--dry-run")
    assert planned.returncode == 0 and "nothing was written" in planned.stdout
    assert "cannot run" in planned.stdout and not (tmp_path / "bench").exists()

    done = inside("bench", "--suite", suite)
    assert done.returncode == 1, "one entry failed"
    assert "failed: too-many-pairs, seed 0" in done.stdout and "too small" in done.stdout
    folder = tmp_path / "bench" / "small"
    results = read_results(folder)
    runs = {run.entry: run for run in results.runs}
    assert {entry: run.state for entry, run in runs.items()} == {
        "consistency": "done", "kd": "done", "too-many-pairs": "failed",
    }  # fmt: skip
    for run in (runs["consistency"], runs["kd"]):
        spent = sum(run.cost.values())
        assert 0.9 * 60_000 < spent <= 60_000, "the budget is spent and not exceeded"
        assert [point.cost for point in run.curve] == sorted(point.cost for point in run.curve)
        assert run.curve[-1].cost == spent
    assert runs["kd"].cost["pairs"] == 256 * 35
    measured = [read_record(folder / name) for run in runs.values() for name in run.records]
    assert sorted((r.subject.name, r.nfe) for r in measured) == [("consistency", 1), ("consistency", 2), ("kd", 1)]
    assert len({r.protocol_id for r in measured}) == 1

    again = inside("bench", "--suite", suite)
    assert "consistency, seed 0: done" in again.stdout and "training:" not in again.stdout
    before = {path: path.read_bytes() for path in (folder / "records").iterdir()}
    assert all(path.read_bytes() == data for path, data in before.items()), "what was measured is not measured again"
    more = inside("bench", "--suite", suite, "--methods", "kd", "--seeds", "2")
    assert more.returncode == 0 and "kd, seed 0: done" in more.stdout and "kd, seed 1: to do" in more.stdout
    board = inside("bench", "--suite", suite, "--report-only")
    assert board.returncode == 0 and "kd" in board.stdout


def test_the_report_needs_nothing_from_outside_and_can_be_made_anew(inside, suite, tmp_path):
    inside("bench", "--suite", suite, "--quiet")
    folder = tmp_path / "bench" / "small"
    page, markdown = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', page) and "<script" not in page and "@import" not in page
    assert page.count("<svg") == 2 and page.count('src="data:image/png') == 4, "teacher, kd, consistency twice"
    assert "A small &lt;suite&gt; &amp; its report" in page and "A small <suite> & its report" in markdown
    for text in (page, markdown):
        assert "too-many-pairs" in text and "too small" in text
        assert "not comparable" in text and "a paper" in text
        assert "forward-equivalents" in text and "KL[points/64x64]-65536" in text
    # A second page from the same results is the same page.
    inside("bench", "--suite", suite, "--report-only")
    assert (folder / "report.html").read_text() == page
    record = folder / "records" / "kd-seed0-nfe1.json"
    edited = json.loads(record.read_text())
    edited["figures"][edited["label"]]["value"] = 0.0
    record.write_text(json.dumps(edited))
    refused = inside("bench", "--suite", suite, "--report-only")
    assert refused.returncode == 1 and "edited" in refused.stderr


def test_nothing_to_report_is_said(inside, tmp_path):
    empty = inside("bench", "--report-only")
    assert empty.returncode == 2 and "no results in bench/digits" in empty.stderr
    budget = inside("bench", "--budget", "lots")
    assert budget.returncode == 2 and "300k" in budget.stderr


def test_stopped_and_given_again_it_ends_as_if_it_had_not_been(start, inside, suite, tmp_path):
    import signal
    import time

    text = (tmp_path / suite).read_text().replace("60k", "200k").replace("  too-many-pairs", "  # ")
    (tmp_path / suite).write_text(re.sub(r"  # .*\n", "", text))
    process = start("bench", "--suite", suite, "--methods", "consistency")
    run = None
    for _ in range(600):
        run = next((tmp_path / "bench" / "small" / "runs").glob("*"), None) if process.poll() is None else None
        if run and (run / "checkpoints" / "latest").exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143, out
    assert "the same command goes on where it stopped" in out
    resumed = inside("bench", "--suite", suite, "--methods", "consistency")
    assert resumed.returncode == 0 and "resuming at step" in resumed.stdout, resumed.stderr
    whole = inside("bench", "--suite", suite, "--methods", "consistency", "--output-dir", "other")
    assert whole.returncode == 0
    records = [
        read_record(folder / "records" / "consistency-seed0-nfe1.json")
        for folder in (tmp_path / "bench" / "small", tmp_path / "other")
    ]
    assert records[0].subject.weights_sha256 == records[1].subject.weights_sha256
    assert records[0].figures == records[1].figures
