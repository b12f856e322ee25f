"""A benchmark from its suite to its report, on the mixture, where a training takes a second."""

import json
import re
import signal

import pytest

import distillkit
from distillkit import DistillkitError, UsageError
from distillkit.benchmark.harness import curve
from distillkit.benchmark.results import read_results
from distillkit.benchmark.run import BenchResult, plan
from distillkit.benchmark.suite import load_suite
from distillkit.engine.trainer import Trainer
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
  kd: {sources: {pairs: {count: 256}}}
  too-many-pairs: {method: kd, sources: {pairs: {count: 4096}}}
quoted:
  - {kind: quoted, name: Somebody's, label: FID-50k, value: 1.5, nfe: 1, protocol: theirs, source: a paper}
"""


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "small.yaml").write_text(SUITE)
    return "small.yaml"


def test_a_bench_compares_reports_and_goes_on(inside, suite, tmp_path):
    planned = inside("bench", "--suite", suite, "--dry-run")
    assert planned.returncode == 0 and "too-many-pairs" in planned.stdout and "60,000" in planned.stdout
    assert not (tmp_path / "bench").exists()

    done = inside("bench", "--suite", suite)
    assert done.returncode == 1, "one entry failed"
    folder = tmp_path / "bench" / "small"
    results = read_results(folder)
    runs = {run.entry: run for run in results.runs}
    assert {entry: run.state for entry, run in runs.items()} == {
        "consistency": "done", "kd": "done", "too-many-pairs": "failed",
    }  # fmt: skip
    assert "60,000" in runs["too-many-pairs"].reason
    for run in (runs["consistency"], runs["kd"]):
        spent = sum(run.cost.values())
        assert 0.9 * 60_000 < spent <= 60_000, "the budget is spent and not exceeded"
        assert len(run.curve) >= 2 and [p.cost for p in run.curve] == sorted(p.cost for p in run.curve)
        assert run.curve[-1].cost == spent
    assert runs["kd"].cost["pairs"] == 256 * 35
    measured = [read_record(folder / name) for run in runs.values() for name in run.records]
    assert sorted((r.subject.name, r.nfe) for r in measured) == [("consistency", 1), ("consistency", 2), ("kd", 1)]
    assert len({r.protocol_id for r in measured}) == 1

    kept = {path: path.read_bytes() for path in (folder / "records").iterdir()}
    again = inside("bench", "--suite", suite)
    assert "consistency, seed 0: done" in again.stdout and "training:" not in again.stdout
    assert all(path.read_bytes() == data for path, data in kept.items()), "what was measured is not measured again"
    more = inside("bench", "--suite", suite, "--methods", "kd", "--seeds", "2")
    assert more.returncode == 0 and "kd, seed 0: done" in more.stdout and "kd, seed 1: to do" in more.stdout


def test_figures_are_those_of_the_run_and_of_evaluate(suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = distillkit.bench(suite, methods=["kd"], budget=30_000, quiet=True)
    assert isinstance(result, BenchResult) and not result.failed
    [run] = result.results.runs
    [name] = run.records
    record, own = read_record(result.folder / name), distillkit.Run(result.folder / run.folder).record
    evaluated = distillkit.evaluate(result.folder / run.folder, output=tmp_path / "evaluated", quiet=True)
    assert own.figures == record.figures == evaluated.figures
    assert own.protocol_id == record.protocol_id == evaluated.protocol_id
    assert result.leaderboard.students[0].name == "kd" and "kd" in result._repr_html_()
    assert {path.name for path in result.report()} == {"report.html", "report.md"}


def test_a_method_of_a_file_is_compared_like_an_installed_one(inside, suite, method_file, tmp_path):
    arguments = ("bench", "--suite", suite, "--methods", f"{method_file('of-a-file')},kd", "--budget", "30k")
    assert inside(*arguments).returncode == 0
    results = read_results(tmp_path / "bench" / "small")
    assert {run.entry: run.package for run in results.runs}["of-a-file"] == "mine.py"
    assert "of-a-file, seed 0: done" in inside(*arguments).stdout


def test_the_report_needs_nothing_from_outside_and_can_be_made_anew(inside, suite, tmp_path):
    inside("bench", "--suite", suite, "--quiet")
    folder = tmp_path / "bench" / "small"
    page, markdown = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', page) and "<script" not in page and "@import" not in page
    assert page.count("<svg") == 2 and page.count('src="data:image/png') == 4, "teacher, kd, consistency twice"
    assert "A small &lt;suite&gt; &amp; its report" in page and "A small <suite> & its report" in markdown
    for text in (page, markdown):
        assert "too-many-pairs" in text and "60,000" in text
        assert "not comparable" in text and "a paper" in text
        assert "difference to best (paired)" in text and "KL[points/64x64]-65536" in text
    # A second page from the same results is the same page.
    assert inside("bench", "--suite", suite, "--report-only").returncode == 0
    assert (folder / "report.html").read_text() == page
    record = folder / "records" / "kd-seed0-nfe1.json"
    edited = json.loads(record.read_text())
    edited["figures"][edited["label"]]["value"] = 0.0
    record.write_text(json.dumps(edited))
    refused = inside("bench", "--suite", suite, "--report-only")
    assert refused.returncode == 1 and str(record.relative_to(tmp_path)) in refused.stderr


def test_where_nothing_can_be_run_nothing_is_measured(inside, suite, tmp_path):
    refused = inside("bench", "--suite", suite, "--methods", "too-many-pairs")
    assert refused.returncode == 1 and "too-many-pairs" in refused.stderr and "60,000" in refused.stderr
    assert not (tmp_path / "bench" / "small" / "results.json").exists()


def test_where_every_training_fails_the_reasons_are_named(suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Trainer, "run", lambda *args, **more: (_ for _ in ()).throw(RuntimeError("out of luck")))
    with pytest.raises(DistillkitError, match=r"kd, seed 0: RuntimeError: out of luck"):
        distillkit.bench(suite, methods=["kd"], quiet=True)
    with pytest.raises(DistillkitError, match=r"out of luck"):
        _ = BenchResult(tmp_path / "bench" / "small").leaderboard


def test_nothing_to_report_is_a_mistake_of_the_command(inside, suite):
    empty = inside("bench", "--suite", suite, "--report-only")
    assert empty.returncode == 2 and "bench/small" in empty.stderr
    budget = inside("bench", "--budget", "lots")
    assert budget.returncode == 2 and "lots" in budget.stderr


def test_results_of_others_name_nothing_outside_their_folder(suite, tmp_path):
    asked = load_suite(tmp_path / suite).model_dump(mode="json")
    for place in ({"grid": {"teacher": "/etc/passwd"}}, {"teacher_records": ["../secret.json"]}):
        (tmp_path / "results.json").write_text(json.dumps({"suite": asked, **place}))
        with pytest.raises(DistillkitError, match="inside"):
            read_results(tmp_path)


def test_a_curve_is_made_of_evaluations_alone(tmp_path):
    lines = [
        {"step": 1, "images": 64, "loss/a[b]": 3.0, "cost": 10},
        {"step": 2, "images": 128, "cost": 20, "evaluation": {"label": "FD", "value": 0.5, "error": 0.1}},
        {"step": 3, "images": 192, "cost": 30, "evaluation": {"label": "FD", "value": 0.4, "error": None}},
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [(p.cost, p.value, p.error) for p in curve(tmp_path)] == [(20, 0.5, 0.1), (30, 0.4, None)]


def test_a_plan_counts_and_writes_nothing(suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planned = plan(suite, seeds=2)
    jobs = {(one.job.entry, one.job.seed): one for one in planned.jobs}
    assert len(jobs) == 6 and jobs["too-many-pairs", 0].state == "cannot run"
    kd = jobs["kd", 1].job
    assert kd.sources_cost == 256 * 35
    assert kd.sources_cost + sum(kd.passes.values()) * kd.config.training.duration <= 60_000
    assert planned.seconds > 0 and planned.protocol == "mixture"
    assert {path.name for path in tmp_path.iterdir()} == {suite}
    assert plan(suite).jobs[0].job.key == planned.jobs[0].job.key
    with pytest.raises(UsageError, match="seeds"):
        plan(suite, seeds=-1)


def test_stopped_and_given_again_it_ends_as_if_it_had_not_been(inside, suite, tmp_path, monkeypatch):
    step = Trainer.train_step

    def stopping(self):
        step(self)
        if self.step == 20 and self.config.batch == 64:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "train_step", stopping)
    stopped = inside("bench", "--suite", suite, "--methods", "consistency")
    monkeypatch.setattr(Trainer, "train_step", step)
    assert stopped.returncode == 143
    [run] = (tmp_path / "bench" / "small" / "runs").iterdir()
    assert not (run / "record.json").exists()
    resumed = inside("bench", "--suite", suite, "--methods", "consistency")
    assert resumed.returncode == 0 and "consistency, seed 0: interrupted" in resumed.stdout, resumed.stderr
    whole = inside("bench", "--suite", suite, "--methods", "consistency", "--output-dir", "other")
    assert whole.returncode == 0
    records = [
        read_record(folder / "records" / "consistency-seed0-nfe1.json")
        for folder in (tmp_path / "bench" / "small", tmp_path / "other")
    ]
    assert records[0].subject.weights_sha256 == records[1].subject.weights_sha256
    assert records[0].figures == records[1].figures
