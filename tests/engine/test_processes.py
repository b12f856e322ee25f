"""Several processes compute what one computes."""

import json
import socket
import subprocess
import sys

import pytest

from tests.conftest import environment


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(arguments, cwd, processes):
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}",
                f"--master_port={free_port()}", "-m", "distillkit"]  # fmt: skip
    return subprocess.run(
        [*launcher, *arguments], cwd=cwd, env=environment(), timeout=300, capture_output=True, text=True, check=False
    )


def log_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_give_the_losses_of_one(small_run, tmp_path):
    entries = {}
    for processes in (1, 2):
        folder = tmp_path / f"run{processes}"
        done = launch([*small_run, "--output-dir", str(folder)], tmp_path, processes)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("student, distilled") == 1, "only the first process prints"
        entries[processes] = log_of(folder)
    assert len(entries[1]) == len(entries[2]) > 5
    compared = 0
    for one, two in zip(entries[1], entries[2], strict=True):
        assert one["step"] == two["step"]
        for key in one:
            if key.startswith(("loss/", "FD[", "kl_", "grad_norm/")):
                assert two[key] == pytest.approx(one[key], rel=2e-2), (one["step"], key)
                compared += 1
    assert compared > 20
    # Before weights have had time to drift apart by rounding, the losses agree closely.
    for key in (k for k in entries[1][0] if k.startswith("loss/")):
        assert entries[2][0][key] == pytest.approx(entries[1][0][key], rel=1e-4)
    first, second = (json.loads((tmp_path / f"run{p}" / "record.json").read_text()) for p in (1, 2))
    assert first["rows"][-1]["nfe"] == second["rows"][-1]["nfe"] == 1.0


def test_a_process_that_dies_ends_the_whole_job_in_bounded_time(small_run, tmp_path):
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, sys\n"
        "from distillkit.engine import trainer\n"
        "real = trainer.Trainer.train_step\n"
        "def step(self):\n"
        "    if self.step == 3 and os.environ['RANK'] == '1':\n"
        "        os._exit(7)\n"
        "    real(self)\n"
        "trainer.Trainer.train_step = step\n"
        "from distillkit.cli import main\n"
        "main()\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    done = subprocess.run(
        [*launcher, str(script), *small_run, "--output-dir", str(tmp_path / "run")],
        cwd=tmp_path, env=environment(), timeout=120, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
