"""Trainings side by side end as those that are done in turn, whatever dies or is stopped on the way."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

import distillkit
from distillkit import DistillkitError, UsageError
from distillkit import registry as registry_module
from distillkit.benchmark.results import read_results
from distillkit.benchmark.workers import supervisor
from distillkit.benchmark.workers.side_by_side import Workers
from distillkit.errors import Interrupted
from distillkit.evaluation.record import read_record
from tests.benchmark.conftest import published_student
from tests.benchmark.forked import ForkedWorker, WaitingWorker, wait_for

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX processes")

METHOD = '''
import os, signal, time
from pathlib import Path
from distillkit import Method, MethodConfig, Recipe, StudentGenerator
from distillkit.parts import Regression, distance_for


class Marked(Regression):
    """Does at some step what a file of the working folder says."""

    place = ""

    def __call__(self, step):
        here = Path(self.place)
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 5 and (mark := here / "mark").exists():
            what, always = mark.read_text().split()
            (here / "at-work").write_text(str(os.getpid()))
            if always == "once":
                mark.unlink()
            if what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(3600)
        return super().__call__(step)


class Mine(Method):
    """A method that may die."""

    name = "marked"

    class Config(MethodConfig):
        place: str = "."

    def recipe(self, teacher, config):
        loss = Marked(distance_for(teacher, "l2"))
        loss.place = config.place
        return Recipe(StudentGenerator.from_teacher(teacher), [loss])
'''
SUITE = """
name: small
teacher: mixture
budget: 10k
curve_points: 2
teacher_steps: [3, 5]
training: {batch: 64, checkpoint_every: 640}
sources: {pairs: {count: 128}}
methods:
  kd: {}
  one: {method: ./marked.py, settings: {place: one}}
  two: {method: ./marked.py, settings: {place: two}}
  too-many-pairs: {method: kd, sources: {pairs: {count: 2048}}}
published:
  theirs: {subject: ./theirs}
"""
CLOCK = {"created", "seconds", "images_per_second"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder with a suite, and methods that are forgotten afterwards."""
    monkeypatch.setattr(registry_module, "_FILES", [])
    registry_module.registry.cache_clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "small.yaml").write_text(SUITE)
    (tmp_path / "marked.py").write_text(METHOD)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    published_student(tmp_path / "theirs")
    yield tmp_path
    monkeypatch.undo()
    registry_module.registry.cache_clear()


@pytest.fixture
def forked(monkeypatch):
    monkeypatch.setattr("distillkit.embedded.mixture.protocol.POINTS", 4096)
    monkeypatch.setattr("distillkit.benchmark.workers.launchers.LocalWorker", ForkedWorker)
    monkeypatch.setattr("distillkit.benchmark.workers.watching.LOOK_SECONDS", 0.05)
    monkeypatch.setattr(supervisor, "LOOK_SECONDS", 0.05)


def without_clock(value):
    """What does not depend on the clock."""
    if isinstance(value, dict):
        return {key: without_clock(one) for key, one in value.items() if key not in CLOCK}
    return [without_clock(one) for one in value] if isinstance(value, list) else value


def results(folder, *entries):
    found = json.loads((folder / "results.json").read_text())
    found["runs"] = [run for run in found["runs"] if run["entry"] in entries]
    found["suite"] = found["environment"]["command"] = None
    return without_clock(found)


def test_side_by_side_and_in_turn_are_the_same(place, forked, capsys):
    """With a stop in the middle, a worker that is killed once, and one that is killed whenever it is at its work."""

    def stop_in_the_middle():
        while not list(place.glob("bench/small/runs/*/checkpoints/step-*")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop_in_the_middle, daemon=True).start()
    workers = Workers(jobs=2, retries=1)
    with pytest.raises(Interrupted) as stopped:
        distillkit.bench("small.yaml", workers=workers)
    assert stopped.value.exit_code == 130
    folder = place / "bench" / "small"
    assert not (folder / "workers").exists() and "stopping 2 jobs" in capsys.readouterr().out
    assert not list(folder.glob("runs/*/.owner.json")), "everything was left at a safe place"
    (place / "one" / "mark").write_text("die once")
    (place / "two" / "mark").write_text("die always")
    ForkedWorker.started = 0
    result = distillkit.bench("small.yaml", workers=workers)
    said = capsys.readouterr().out
    assert "interrupted, on " in said, "what was stopped goes on"
    assert "one, seed 0: its process was ended by SIGKILL" in said and "trying again (1 of 1)" in said
    assert {run.entry: run.state for run in result.results.runs} == {
        "kd": "done", "one": "done", "two": "failed", "too-many-pairs": "failed", "theirs": "done",
    }  # fmt: skip
    [died] = [run for run in result.failed if run.entry == "two"]
    assert "died 2 times" in died.reason and "SIGKILL" in died.reason
    log = Path(died.reason.rpartition(" ")[2])
    assert "noise-image pairs" in log.read_text()
    # Two at first, and at most one for each of three deaths, where no other worker has just become free.
    assert 3 <= ForkedWorker.started <= 5

    same = ("kd", "one", "theirs")
    in_turn = distillkit.bench("small.yaml", methods=same, output_dir="in-turn", quiet=True)
    assert results(folder, *same) == results(in_turn.folder, *same)
    boards = [made.leaderboard for made in (result, in_turn)]
    ranked = [[(r.name, r.mean, r.error) for r in (*board.students, *board.published)] for board in boards]
    assert len(ranked[0]) == len(same) and ranked[0] == ranked[1]
    for kind in ("records/*.json", "grid/*.png"):
        names = sorted(path.relative_to(in_turn.folder) for path in in_turn.folder.glob(kind))
        assert names and names == sorted(path.relative_to(folder) for path in folder.glob(kind))
    for path in in_turn.folder.glob("records/*.json"):
        one, other = (read_record(where / "records" / path.name) for where in (folder, in_turn.folder))
        assert (one.figures, one.samples_sha256, one.subject) == (other.figures, other.samples_sha256, other.subject)
    for path in in_turn.folder.glob("grid/*.png"):
        assert path.read_bytes() == (folder / "grid" / path.name).read_bytes()
    pairs = list((place / "cache" / "pairs").glob("*/shard-*"))
    assert len(pairs) == 1, "entries share their pairs"


def test_what_has_not_begun_is_not_waited_for(place, forked, capsys, monkeypatch):
    """Before: a bench that was stopped waited until its jobs in Slurm's queue had had their turn."""
    kinds = iter([ForkedWorker])

    def started(*given):
        return next(kinds, WaitingWorker)(*given)

    monkeypatch.setattr("distillkit.benchmark.workers.launchers.LocalWorker", started)

    def stop_in_the_middle():
        while not list(place.glob("bench/small/runs/*/checkpoints/step-*")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop_in_the_middle, daemon=True).start()
    with pytest.raises(Interrupted) as stopped:
        distillkit.bench("small.yaml", methods=("kd", "one"), workers=Workers(jobs=2))
    assert stopped.value.exit_code == 130
    assert "stopping 1 job at their next safe places; withdrawn before their turn: 1" in capsys.readouterr().out


def alive(process):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at Linux' /proc")
@pytest.mark.parametrize("signals", [(signal.SIGINT, signal.SIGINT), (signal.SIGKILL,)])
def test_no_worker_outlives_its_bench(place, forked, signals, monkeypatch):
    """A worker in the middle of a step that takes an hour, after two signals to the bench, and after its death."""
    (place / "one" / "mark").write_text("wait once")
    monkeypatch.setattr("distillkit.benchmark.workers.watching.PATIENCE", 0.5)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for standard in (1, 2):
                os.dup2(nowhere, standard)
            distillkit.bench("small.yaml", methods=["one"], workers=Workers(jobs=2), quiet=True)
        except DistillkitError as error:
            code = error.exit_code
        finally:
            os._exit(code)
    at_work = place / "one" / "at-work"
    worker = int(wait_for(lambda: at_work.exists() and at_work.read_text()))
    assert alive(worker)
    for number in signals:
        os.kill(child, number)
        time.sleep(0.5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (-9 if signals == (signal.SIGKILL,) else 130)
    wait_for(lambda: not alive(worker))


def test_a_mistake_is_told_as_by_a_bench_that_does_one_thing_after_the_other(place, forked):
    with pytest.raises(DistillkitError, match=r"none of the entries can be run:\s+too-many-pairs"):
        distillkit.bench("small.yaml", methods=["too-many-pairs"], workers=Workers(jobs=2), quiet=True)
    (place / "small.yaml").write_text(SUITE.replace("teacher: mixture", "teacher: mixture\nprotocol: none-such"))
    with pytest.raises(UsageError, match="none-such"):
        distillkit.bench("small.yaml", methods=["kd"], workers=Workers(jobs=2), quiet=True)
    assert not (place / "bench" / "small" / "workers").exists()


def test_what_cannot_be_asked_for_is_refused(place, monkeypatch):
    for wrong in ({"jobs": 0}, {"launcher": "pbs"}, {"slurm": {"time": "1"}}, {"retries": -1}):
        with pytest.raises(UsageError):
            Workers(**wrong)
    with pytest.raises(UsageError, match="none-such"):
        distillkit.bench("small.yaml", workers=Workers(jobs=2), device="none-such")
    assert not (place / "bench").exists(), "nothing is left of what was refused"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="without torchrun"):
        distillkit.bench("small.yaml", workers=Workers(jobs=2))


def test_a_job_may_be_of_several_processes(place, forked):
    workers = Workers(processes_per_job=2, retries=0)
    result = distillkit.bench("small.yaml", methods=["kd"], device="cpu", workers=workers, quiet=True)
    [run] = read_results(result.folder).runs
    assert run.state == "done", run.reason
    assert len(result.leaderboard.students) == 1
    [log] = result.folder.glob("logs/kd-*.log")
    assert log.read_text().count("measuring the student, distilled") == 1, "one of the processes reports"
    assert "on each of 2 processes" in log.read_text()
