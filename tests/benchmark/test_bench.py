"""A benchmark from its suite to its report, on the mixture, where a training takes a second."""

import importlib
import json
import re
import shutil
import signal
from pathlib import Path

import pytest

import distillkit
from distillkit import DistillkitError, UsageError
from distillkit.benchmark.outcomes import curve
from distillkit.benchmark.results import read_results
from distillkit.benchmark.run import BenchResult, plan
from distillkit.benchmark.suite import load_suite
from distillkit.engine.trainer import Trainer
from distillkit.evaluation.record import read_record

SUITE = """
name: small
title: A small <suite> & its report
teacher: mixture
budget: 30k
curve_points: 2
nfe: [2]
teacher_steps: [3, 18]
training: {batch: 64}
methods:
  consistency: {}
  kd: {sources: {pairs: {count: 128}}}
  too-many-pairs: {method: kd, sources: {pairs: {count: 2048}}}
quoted:
  - {kind: quoted, name: Somebody's, label: FID-50k, value: 1.5, nfe: 1, protocol: theirs, source: a paper}
"""


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "small.yaml").write_text(SUITE)
    return "small.yaml"


POINTS = 4096


@pytest.fixture(autouse=True, scope="module")
def _few_points():
    """A sixteenth of the mixture's points: what is looked at here is how figures are kept, not what they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distillkit.embedded.mixture.protocol.POINTS", POINTS)
        yield


MEASURED = []


def noting(measure):
    def noted(generator, *arguments, **options):
        record = measure(generator, *arguments, **options)
        MEASURED.append((generator.subject.kind, record.nfe))
        return record

    return noted


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder where the suite's benchmark was made; tests that change it take a copy."""
    place = tmp_path_factory.mktemp("done")
    (place / "small.yaml").write_text(SUITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for part in ("benchmark.harness", "evaluation.teacher_record", "jobs.training"):
            module = f"distillkit.{part}"
            patch.setattr(f"{module}.measure", noting(importlib.import_module(module).measure))
        result = distillkit.bench("small.yaml", quiet=True)
    assert result.folder == Path("bench/small")
    return place / result.folder


def test_a_bench_spends_one_budget_and_keeps_a_failure_as_a_result(done):
    runs = {run.entry: run for run in read_results(done).runs}
    assert {entry: run.state for entry, run in runs.items()} == {
        "consistency": "done", "kd": "done", "too-many-pairs": "failed",
    }  # fmt: skip
    assert "30,000" in runs["too-many-pairs"].reason
    for run in (runs["consistency"], runs["kd"]):
        spent = sum(run.cost.values())
        assert 0.9 * 30_000 < spent <= 30_000, "the budget is spent and not exceeded"
        assert len(run.curve) >= 2 and [p.cost for p in run.curve] == sorted(p.cost for p in run.curve)
        assert run.curve[-1].cost == spent
    assert runs["kd"].cost["pairs"] == 128 * 35
    measured = [read_record(done / name) for run in runs.values() for name in run.records]
    assert sorted((r.subject.name, r.nfe) for r in measured) == [("consistency", 1), ("consistency", 2), ("kd", 1)]
    assert len({r.protocol_id for r in measured}) == 1


@pytest.mark.usefixtures("done")
def test_the_teacher_is_measured_once_for_the_bench_and_all_its_trainings():
    assert sorted(nfe for kind, nfe in MEASURED if kind == "teacher") == [5, 35]


def test_a_student_is_measured_once_at_its_end_and_what_it_starts_from_not_at_all(done):
    runs = [run for run in BenchResult(done).results.runs if run.state == "done"]
    records, points = sum(len(run.records) for run in runs), sum(len(run.curve) for run in runs)
    assert records == 3 and sum(kind == "student" for kind, _ in MEASURED) == records + points
    for run in runs:
        assert [row.name for row in distillkit.Run(done / run.folder).rows][1:] == ["student, distilled"]
        assert not (done / run.folder / "untrained.json").exists()


def test_a_student_of_a_run_that_had_ended_before_is_measured_again(done, suite, inside, tmp_path):
    """The code for figures may have changed since."""
    shutil.copytree(done, tmp_path / "bench" / "small")
    record = tmp_path / "bench" / "small" / "records" / "kd-seed0-nfe1.json"
    before = read_record(record)
    record.unlink()
    assert inside("bench", "--suite", suite, "--methods", "kd").returncode == 0
    after = read_record(record)
    assert after.figures == before.figures and after.subject == before.subject and after.created != before.created


def test_what_is_done_is_kept_and_only_what_is_new_is_made(inside, suite, done, tmp_path):
    shutil.copytree(done, tmp_path / "bench" / "small")
    kept = {path: path.read_bytes() for path in (tmp_path / "bench" / "small" / "records").iterdir()}
    again = inside("bench", "--suite", suite)
    assert again.returncode == 1, "one entry failed"
    assert "consistency, seed 0: done" in again.stdout and "training:" not in again.stdout
    assert kept and all(path.read_bytes() == data for path, data in kept.items())
    more = inside("bench", "--suite", suite, "--methods", "kd", "--seeds", "2")
    assert more.returncode == 0 and "kd, seed 0: done" in more.stdout and "kd, seed 1: to do" in more.stdout
    assert all(path.read_bytes() == data for path, data in kept.items())


def test_figures_are_those_of_the_run_and_of_evaluate(done, tmp_path):
    result = BenchResult(done)
    run = next(run for run in result.results.runs if run.entry == "kd")
    record, own = read_record(done / run.records[0]), distillkit.Run(done / run.folder).record
    evaluated = distillkit.evaluate(done / run.folder, output=tmp_path / "evaluated", quiet=True)
    assert own.figures == record.figures == evaluated.figures
    assert own.protocol_id == record.protocol_id == evaluated.protocol_id


def test_a_result_is_read_in_python_too(done):
    result = BenchResult(done)
    assert {row.name for row in result.leaderboard.students} == {"consistency", "kd"}
    assert [run.entry for run in result.failed] == ["too-many-pairs"] and "1 failed" in repr(result)
    assert "<table>" in result._repr_html_() and "difference to best (paired)" in result._repr_html_()


def test_a_method_of_a_file_is_compared_like_an_installed_one(inside, suite, method_file, tmp_path):
    text = (tmp_path / suite).read_text().replace("training:", "sources: {pairs: {count: 128}}\ntraining:")
    (tmp_path / suite).write_text(text)
    arguments = ("bench", "--suite", suite, "--methods", str(method_file("of-a-file")), "--budget", "15k")
    assert inside(*arguments).returncode == 0
    [run] = read_results(tmp_path / "bench" / "small").runs
    assert (run.entry, run.package) == ("of-a-file", "mine.py")
    assert "of-a-file, seed 0: done" in inside(*arguments).stdout


def test_a_suite_begins_at_the_seed_that_it_names(suite, tmp_path):
    text = (tmp_path / suite).read_text().replace("budget: 30k", "budget: 15k\nseeds: 2\nfirst_seed: 3")
    (tmp_path / suite).write_text(text)
    result = distillkit.bench(
        tmp_path / suite, methods=["kd", "too-many-pairs"], output_dir=tmp_path / "later", quiet=True
    )
    assert [(run.entry, run.seed, run.state) for run in result.results.runs] == [
        ("kd", 3, "done"), ("too-many-pairs", 3, "failed"), ("kd", 4, "done"), ("too-many-pairs", 4, "failed"),
    ]  # fmt: skip
    assert [run.config["seed"] for run in result.results.runs if run.state == "done"] == [3, 4]
    assert "kd" in result.results.grid and "Where the budget went" in (tmp_path / "later" / "report.md").read_text()
    with pytest.raises(DistillkitError, match="none of the entries can be run") as refused:
        distillkit.bench(tmp_path / suite, methods=["too-many-pairs"], output_dir=tmp_path / "none", quiet=True)
    assert str(refused.value).count("too-many-pairs") == 1, "once, and not for every seed"


def test_the_report_needs_nothing_from_outside_and_can_be_made_anew(inside, suite, done, tmp_path):
    folder = tmp_path / "bench" / "small"
    shutil.copytree(done, folder, ignore=shutil.ignore_patterns("runs"))
    page, markdown = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', page) and "<script" not in page and "@import" not in page
    assert page.count('role="img"') == 2 and page.count('src="data:image/png') == 4, "teacher, kd, consistency twice"
    assert page.index("samples of teacher") < page.index("samples of kd"), "the teacher first, then by rank"
    assert "A small &lt;suite&gt; &amp; its report" in page and "A small &lt;suite> & its report" in markdown
    for text in (page, markdown):
        assert "too-many-pairs" in text and "30,000" in text
        assert "not comparable" in text and "a paper" in text
        assert "difference to best (paired)" in text and f"KL[points/64x64]-{POINTS}" in text
    # A second page from the same results is the same page.
    assert inside("bench", "--suite", suite, "--report-only").returncode == 0
    assert (folder / "report.html").read_text() == page
    record = folder / "records" / "kd-seed0-nfe1.json"
    edited = json.loads(record.read_text())
    edited["figures"][edited["label"]]["value"] = 0.0
    record.write_text(json.dumps(edited))
    refused = inside("bench", "--suite", suite, "--report-only")
    assert refused.returncode == 1 and str(record.relative_to(tmp_path)) in refused.stderr


def test_names_of_others_are_text_in_the_report(done, tmp_path):
    """Results may come from anybody: whatever they name, the page runs nothing."""
    shutil.copytree(done, tmp_path / "done", ignore=shutil.ignore_patterns("runs"))
    found = json.loads((tmp_path / "done" / "results.json").read_text())
    bad = '<script>alert(1)</script>"><img src=x onerror=alert(1)> | [a](http://b) ```'
    for run in found["runs"]:
        run |= {"entry": f"{run['entry']}{bad}", "package": bad, "reason": bad, "health": {bad: bad}}
        run |= {"cost": {bad: 1.0}}
    suite = found["suite"]
    suite |= {"title": bad, "teacher": bad, "methods": {f"{name}{bad}": {"note": bad} for name in suite["methods"]}}
    found |= {"grid": {f"{name}{bad}": path for name, path in found["grid"].items()}}
    found["environment"]["command"] = bad
    (tmp_path / "done" / "results.json").write_text(json.dumps(found))
    pages = {path.suffix: path.read_text() for path in BenchResult(tmp_path / "done").report()}
    page, text = pages[".html"], pages[".md"]
    before, _, command = text.partition("## How to reproduce")
    assert "<script" not in before and "[a](http" not in before and "```" not in before
    assert command.count("```") == 2 and "\\| \\[a\\](http" in text, "no name begins a cell or a link"
    assert "<script" not in page and "<img src=x" not in page and page.count("&lt;script&gt;") > 10


def test_a_plan_is_shown_and_nothing_written(inside, suite, tmp_path):
    planned = inside("bench", "--suite", suite, "--methods", "kd,too-many-pairs", "--dry-run")
    assert planned.returncode == 0 and "too-many-pairs" in planned.stdout and "30,000" in planned.stdout
    assert not (tmp_path / "bench").exists()


def test_a_plan_is_refused_where_the_benchmark_would_be(inside, suite):
    refused = inside("bench", "--suite", suite, "--methods", "too-many-pairs", "--dry-run")
    assert refused.returncode == 1 and "too-many-pairs" in refused.stderr


def test_where_nothing_can_be_run_nothing_is_measured(inside, suite, tmp_path):
    refused = inside("bench", "--suite", suite, "--methods", "too-many-pairs")
    assert refused.returncode == 1 and "too-many-pairs" in refused.stderr and "30,000" in refused.stderr
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
        {"step": 2, "images": 128, "cost": 20, "evaluation": {"label": "FD", "value": 0.5, "error": 0.1, "nfe": 4.0}},
        {"step": 3, "images": 192, "cost": 30, "evaluation": {"label": "FD", "value": 0.4, "error": None}},
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = [(p.cost, p.value, p.error, p.nfe) for p in curve(tmp_path)]
    assert found == [(20, 0.5, 0.1, 4.0), (30, 0.4, None, None)], "results of runs that did not record evaluations too"


def test_a_plan_counts_and_writes_nothing(suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planned = plan(suite, methods=["kd", "too-many-pairs"], seeds=2)
    jobs = {(one.job.entry, one.job.seed): one for one in planned.jobs}
    assert len(jobs) == 4 and jobs["too-many-pairs", 0].state == "cannot run"
    kd = jobs["kd", 1].job
    assert kd.sources_cost == 128 * 35
    assert kd.sources_cost + sum(kd.passes.values()) * kd.config.training.duration <= 30_000
    assert planned.seconds > 0 and planned.protocol == "mixture"
    assert {path.name for path in tmp_path.iterdir()} == {suite}
    with pytest.raises(UsageError, match="seeds"):
        plan(suite, seeds=-1)


def test_stopped_and_given_again_it_ends_as_if_it_had_not_been(inside, suite, done, tmp_path, monkeypatch):
    step = Trainer.train_step

    def stopping(self):
        step(self)
        if self.step == 20 and self.config.batch == 64:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "train_step", stopping)
    stopped = inside("bench", "--suite", suite, "--methods", "consistency")
    monkeypatch.setattr(Trainer, "train_step", step)
    assert stopped.returncode == 143
    folder = tmp_path / "bench" / "small"
    [run] = (folder / "runs").iterdir()
    assert not (run / "record.json").exists()
    resumed = inside("bench", "--suite", suite, "--methods", "consistency")
    assert resumed.returncode == 0 and "consistency, seed 0: interrupted" in resumed.stdout, resumed.stderr
    again, whole = (read_record(place / "records" / "consistency-seed0-nfe1.json") for place in (folder, done))
    assert again.subject.weights_sha256 == whole.subject.weights_sha256 and again.figures == whole.figures
