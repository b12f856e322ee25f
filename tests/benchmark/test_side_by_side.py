"""Trainings side by side end as those that are done in turn, whatever dies or is stopped on the way."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

import distillkit
from distillkit import DistillkitError, UsageError
from distillkit import registry as registry_module
from distillkit.benchmark.results import read_results
from distillkit.benchmark.workers import devices, supervisor
from distillkit.benchmark.workers.cluster import Cluster, ClusterWorker, Incarnation, job_parameters, minutes
from distillkit.benchmark.workers.messages import Place
from distillkit.benchmark.workers.side_by_side import Workers
from distillkit.errors import Interrupted
from distillkit.evaluation.record import read_record
from tests.benchmark.forked import ForkedWorker
from tests.conftest import HANG

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
        "kd": "done", "one": "done", "two": "failed", "too-many-pairs": "failed",
    }  # fmt: skip
    [died] = [run for run in result.failed if run.entry == "two"]
    assert "died 2 times" in died.reason and "SIGKILL" in died.reason
    log = Path(died.reason.rpartition(" ")[2])
    assert "noise-image pairs" in log.read_text()
    # Two at first, and at most one for each of three deaths, where no other worker has just become free.
    assert 3 <= ForkedWorker.started <= 5

    in_turn = distillkit.bench("small.yaml", methods=["kd", "one"], output_dir="in-turn", quiet=True)
    same = ("kd", "one")
    assert results(folder, *same) == results(in_turn.folder, *same)
    ranked = [[(row.name, row.mean, row.error) for row in made.leaderboard.students] for made in (result, in_turn)]
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


def alive(process):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(condition):
    deadline = time.monotonic() + HANG
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


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
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="without torchrun"):
        distillkit.bench("small.yaml", workers=Workers(jobs=2))


def test_devices_are_given_out_one_for_each_process(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def given(jobs, processes):
        made, said = devices.shares(jobs, processes, "auto")
        return [share.environment["CUDA_VISIBLE_DEVICES"] for share in made], said

    assert given(4, 1) == (["0", "1", "2", "3"], []) and given(2, 2) == (["0,1", "2,3"], [])
    shared, said = given(3, 2)
    assert shared == ["0,1", "2,3", "0,1"] and "share 4 GPUs" in said[0] and "--jobs 2" in said[0]
    with pytest.raises(UsageError, match="there are 4 GPUs"):
        given(1, 5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7, 5")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert given(2, 1) == (["7", "5"], [])


def test_cores_are_shared_and_threads_that_are_asked_for_are_kept(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    made, said = devices.shares(2, 1, "cpu")
    assert [share.environment for share in made] == [{"OMP_NUM_THREADS": "4"}] * 2 and not said
    assert devices.shares(1, 3, "cpu")[0][0].environment == {"OMP_NUM_THREADS": "2"}
    assert devices.shares(16, 1, "cpu")[1], "more jobs than cores are not started without saying so"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    made, said = devices.shares(4, 1, "cpu")
    assert made[0].environment == {"OMP_NUM_THREADS": "3"} and "share 8 cores" in said[0]


def test_options_of_slurm_are_those_of_sbatch():
    known = {"partition", "account", "signal_delay_s", "gpus_per_node"}
    asked = {"partition": "gpu", "--account": "abc", "time": "1-02:30", "signal-delay-s": "300", "licenses": "x:1"}
    assert job_parameters(asked, 2, known) == {
        "timeout_min": 1590, "name": "distillkit-bench", "gpus_per_node": 2, "slurm_partition": "gpu",
        "slurm_account": "abc", "slurm_signal_delay_s": 300, "slurm_additional_parameters": {"licenses": "x:1"},
    }  # fmt: skip
    assert [minutes(text) for text in ("90", "90:00", "8:00:00", "2-0", "0:30")] == [90, 90, 480, 2880, 1]
    for wrong in ({"time": "soon"}, {"time": "0"}, {"nodes": "2"}, {"gpus": "1"}, {"gpus": "many"}):
        with pytest.raises(UsageError):
            job_parameters(wrong, 2, known)


PATIENT = """
import pathlib, signal, sys, time
if pathlib.Path("saved").exists():
    sys.exit(sys.stdin.read() == "never")
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("saved").touch(), sys.exit(143)))
pathlib.Path("at-work").touch()
time.sleep(3600)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at Linux' /proc")
def test_a_job_of_a_cluster_goes_on_in_another_after_its_time_limit(place):
    """What submitit runs here is told, as by Slurm, that its time is over; its worker stops at a safe place."""
    pytest.importorskip("submitit")
    cluster = Cluster(place, {"cluster": "local", "time": "30"}, 1, gpus=False)
    job = cluster._executor.submit(Incarnation([sys.executable, "-c", PATIENT], str(place)))
    worker = ClusterWorker(job)
    wait_for((place / "at-work").exists)
    assert worker.ended() is None
    [task] = Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text().split()
    os.kill(int(task), signal.SIGUSR2)
    wait_for((place / "saved").exists)
    # The second one waits for the end of its input, which is the bench's to close, or the cluster's.
    wait_for(lambda: "Requeued" in job.stdout() or "Requeued" in (job.stderr() or ""))
    time.sleep(1)
    assert worker.ended() is None, "it goes on"
    worker.kill()
    wait_for(worker.ended)


SLURM = {
    "srun": "exit 0", "sbatch": "cp $1 {place}/script; echo Submitted batch job 4711",
    "sacct": "echo 'JobID|State|NodeList'; echo \"4711|$(cat {place}/state)|node0\"", 
    "scancel": "echo $1 >> {place}/cancelled",
}  # fmt: skip


def test_jobs_of_slurm_ask_for_what_was_asked(place, monkeypatch):
    """By programs in the place of Slurm's, which keep what they are given."""
    pytest.importorskip("submitit")
    (place / "bin").mkdir()
    for name, text in SLURM.items():
        (place / "bin" / name).write_text(f"#!/bin/bash\n{text.format(place=place)}\n")
        (place / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'bin'}:{os.environ['PATH']}")
    (place / "state").write_text("PENDING")
    options = {"partition": "gpu", "account": "abc", "time": "1-0", "signal_delay_s": "300", "licenses": "x:1"}
    cluster = Cluster(place / "bench", options, 4, gpus=True)
    assert "partition gpu" in cluster.summary and "licenses x:1" in cluster.summary
    worker = cluster.start(Place.new(place / "bench", 1))
    script = (place / "script").read_text()
    for line in ("--partition=gpu", "--account=abc", "--time=1440", "--gpus-per-node=4", "--nodes=1", "--licenses=x:1",
                 "--signal=USR2@300"):  # fmt: skip
        assert f"#SBATCH {line}\n" in script, script
    assert worker.ended() is None, "it waits for its turn"
    worker.kill()
    assert (place / "cancelled").read_text() == "4711\n"
    (place / "state").write_text("NODE_FAIL")
    monkeypatch.setattr(worker.job.watcher, "_last_status_check", float("-inf"))
    assert "4711 (NODE_FAIL" in worker.ended()


def test_jobs_of_a_cluster_may_be_of_several_processes(place):
    pytest.importorskip("submitit")
    workers = Workers(processes_per_job=2, launcher="slurm", slurm={"cluster": "local", "time": "30"}, retries=0)
    result = distillkit.bench("small.yaml", methods=["kd"], device="cpu", workers=workers, quiet=True)
    [run] = read_results(result.folder).runs
    assert run.state == "done", run.reason
    assert len(result.leaderboard.students) == 1
    [log] = result.folder.glob("logs/kd-*.log")
    assert log.read_text().count("measuring kd") == 1, "one of the processes reports"
