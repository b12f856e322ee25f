"""What workers get, and how they are started: devices, threads, jobs of Slurm."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from distillkit import UsageError
from distillkit.benchmark.workers import devices
from distillkit.benchmark.workers.cluster import Cluster, ClusterWorker, Incarnation, job_parameters, minutes
from distillkit.benchmark.workers.launchers import worker_command
from distillkit.benchmark.workers.messages import Place
from tests.benchmark.forked import wait_for
from tests.conftest import HANG

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX processes")


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
def test_a_job_of_a_cluster_goes_on_in_another_after_its_time_limit(tmp_path):
    """What submitit runs here is told, as by Slurm, that its time is over; its worker stops at a safe tmp_path."""
    pytest.importorskip("submitit")
    cluster = Cluster(tmp_path, {"cluster": "local", "time": "30"}, 1, gpus=False)
    job = cluster._executor.submit(Incarnation([sys.executable, "-c", PATIENT], str(tmp_path)))
    worker = ClusterWorker(job)
    wait_for((tmp_path / "at-work").exists)
    assert worker.ended() is None
    [task] = Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text().split()
    os.kill(int(task), signal.SIGUSR2)
    wait_for((tmp_path / "saved").exists)
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


def test_jobs_of_slurm_ask_for_what_was_asked(tmp_path, monkeypatch):
    """By programs in the tmp_path of Slurm's, which keep what they are given."""
    pytest.importorskip("submitit")
    (tmp_path / "bin").mkdir()
    for name, text in SLURM.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text.format(place=tmp_path)}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "state").write_text("PENDING")
    options = {"partition": "gpu", "account": "abc", "time": "1-0", "signal_delay_s": "300", "licenses": "x:1"}
    cluster = Cluster(tmp_path / "bench", options, 4, gpus=True)
    assert "partition gpu" in cluster.summary and "licenses x:1" in cluster.summary
    worker = cluster.start(Place.new(tmp_path / "bench", 1))
    script = (tmp_path / "script").read_text()
    for line in ("--partition=gpu", "--account=abc", "--time=1440", "--gpus-per-node=4", "--nodes=1", "--licenses=x:1",
                 "--signal=USR2@300"):  # fmt: skip
        assert f"#SBATCH {line}\n" in script, script
    assert worker.ended() is None and worker.waiting()
    (tmp_path / "state").write_text("RUNNING")
    time.sleep(0.01)  # submitit asks once a millisecond
    assert not worker.waiting(), "asked anew"
    worker.kill()
    assert (tmp_path / "cancelled").read_text() == "4711\n"
    (tmp_path / "state").write_text("NODE_FAIL")
    monkeypatch.setattr(worker.job.watcher, "_last_status_check", float("-inf"))
    assert "4711 (NODE_FAIL" in worker.ended()


def test_a_worker_is_started_by_torchs_launcher_where_it_has_several_processes(tmp_path, warm):
    worker = Place(tmp_path, "3-abcd")
    module = ["-m", "distillkit.benchmark.workers.process", str(tmp_path), "3-abcd"]
    assert worker_command(worker, 1) == [sys.executable, *module]
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *module]
    assert worker_command(worker, 2) == launched
    ended = warm.run(worker_command(worker, 1), tmp_path, os.environ, HANG)
    assert ended.returncode == 1 and "settings.json" in ended.stderr, "it is the worker that is started"
