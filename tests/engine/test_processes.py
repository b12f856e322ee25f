"""Several processes compute what one computes, keep what they work with, and end together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HANG, environment


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(arguments, cwd, processes):
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}",
                f"--master_port={free_port()}"]  # fmt: skip
    return subprocess.run(
        [*launcher, *arguments], cwd=cwd, env=environment(), timeout=HANG, capture_output=True, text=True, check=False
    )


def log_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def figures(entry):
    """What two runs must agree in."""
    named = {key: value for key, value in entry.items() if key.startswith(("loss/", "kl_", "grad_norm/"))}
    return named | ({"figure": entry["evaluation"]["value"]} if "evaluation" in entry else {})


def test_two_processes_give_the_losses_of_one(small_run, tmp_path):
    entries = {}
    for processes in (1, 2):
        folder = tmp_path / f"run{processes}"
        # A tracker, whose end must not be that of the processes' group.
        tracker = ["--report-to", "tensorboard"] if processes == 2 else []
        arguments = ["-m", "distillkit", *small_run, *tracker, "--output-dir", str(folder)]
        done = launch(arguments, tmp_path, processes)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("distillkit sample") == 1, "only the first process prints"
        entries[processes] = log_of(folder)
    assert list((tmp_path / "run2").rglob("events.out.tfevents*"))
    assert len(entries[1]) == len(entries[2]) > 5
    compared = 0
    for one, two in zip(entries[1], entries[2], strict=True):
        assert one["step"] == two["step"]
        assert figures(two) == pytest.approx(figures(one), rel=2e-2), one["step"]
        compared += len(figures(one))
    assert compared > 20
    # Before weights have had time to drift apart by rounding, the losses agree closely.
    for key in (k for k in entries[1][0] if k.startswith("loss/")):
        assert entries[2][0][key] == pytest.approx(entries[1][0][key], rel=1e-4)
    first, second = (json.loads((tmp_path / f"run{p}" / "record.json").read_text()) for p in (1, 2))
    assert first["rows"][-1]["nfe"] == second["rows"][-1]["nfe"] == 1.0
    assert first["selection"]["best_step"] == second["selection"]["best_step"]


def test_two_processes_resume_exactly_and_outlive_their_trackers(tmp_path):
    done = launch([str(Path(__file__).parent / "together.py"), str(tmp_path)], tmp_path, 2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.split()) == ["done:0", "done:1"]


def test_a_process_that_dies_ends_the_whole_job(small_run, tmp_path):
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, sys\n"
        "from distillkit.engine import trainer\n"
        "real = trainer.Trainer.train_step\n"
        "def step(self):\n"
        "    if self.step == 5 and os.environ['RANK'] == '1':\n"
        "        os._exit(7)\n"
        "    real(self)\n"
        "trainer.Trainer.train_step = step\n"
        "from distillkit.cli import main\n"
        "main()\n"
    )
    done = launch([str(script), *small_run, "--output-dir", str(tmp_path / "run")], tmp_path, 2)
    assert done.returncode != 0 and "exitcode  : 7" in done.stderr
    assert [entry["step"] for entry in log_of(tmp_path / "run")] == [2, 4]
    assert done.stderr.count("distillkit:") <= 1 and "fault of distillkit" not in done.stderr


STUCK = """
import os, signal, sys, torch
from distillkit.errors import DistillkitError
from distillkit.jobs.context import job_context
try:
    with job_context(device="cpu", timeout=4) as context:
        context.progress.go_on = "the command"
        context.progress.mark(7)
        context.accelerator.wait_for_everyone()
        if context.rank:
            context.accelerator.wait_for_everyone()
            os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        else:
            context.accelerator.wait_for_everyone()
            context.accelerator.wait_for_everyone()
except DistillkitError as error:
    print(f"distillkit: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("name", ["SIGSTOP", "SIGKILL"])
def test_a_process_that_is_stuck_or_gone_is_told_with_the_last_step_and_how_to_go_on(tmp_path, name):
    (tmp_path / "stuck.py").write_text(STUCK)
    joined = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "stuck.py"), name],
            stderr=subprocess.PIPE,
            text=True,
            env=environment({**joined, "RANK": str(rank), "LOCAL_RANK": str(rank)}),
        )
        for rank in range(2)
    ]
    try:
        _, said = processes[0].communicate(timeout=HANG)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert processes[0].returncode == 1 and said.count("distillkit:") == 1, said
    assert "the command" in said and "step" in said and " 7" in said
    assert name == "SIGKILL" or f"process 1 of 2 (pid {processes[1].pid}" in said
