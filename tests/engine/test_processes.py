"""Several processes compute what one computes, keep what they work with, and end together."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import HANG, environment, group_of


@pytest.fixture
def torchrun(warm, tmp_path):
    """Run a program in two fresh interpreters, which torchrun starts and ends."""

    def run(*arguments):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        return warm.run([*launcher, *map(str, arguments)], tmp_path, environment(), HANG)

    return run


def log_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "preview" not in line]


def figures(entry):
    """What two runs must agree in."""
    named = {key: value for key, value in entry.items() if key.startswith(("loss/", "kl_", "grad_norm/"))}
    return named | ({"figure": entry["evaluation"]["value"]} if "evaluation" in entry else {})


def test_two_processes_make_the_student_that_one_makes(small_run, inside, torchrun, tmp_path):
    alone = inside(*small_run, "--output-dir", "run1", "--quiet")
    assert alone.returncode == 0, alone.stderr
    # A tracker, which is closed before the student is written and must leave the processes their group.
    done = torchrun("-m", "distillkit", *small_run, "--report-to", "tensorboard", "--output-dir", "run2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("everything is in") == 1, "only the first process prints"
    assert list((tmp_path / "run2").rglob("events.out.tfevents*"))
    entries = {processes: log_of(tmp_path / f"run{processes}") for processes in (1, 2)}
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
    a, b = (load_file(tmp_path / f"run{p}" / "student" / "model.safetensors") for p in (1, 2))
    assert all(torch.allclose(a[name], b[name], atol=2e-5) for name in a | b)


def test_two_processes_resume_exactly_and_outlive_their_trackers(tmp_path, together):
    done = together(Path(__file__).parent / "together.py", tmp_path)
    assert [one.stdout.split() for one in done] == [["done:0"], ["done:1"]], [one.stderr[-3000:] for one in done]
    assert [one.returncode for one in done] == [0, 0]


def test_a_process_that_dies_ends_the_whole_job(small_run, torchrun, tmp_path):
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
    done = torchrun(script, *small_run, "--output-dir", tmp_path / "run")
    assert done.returncode != 0 and "exitcode  : 7" in done.stderr
    assert [entry["step"] for entry in log_of(tmp_path / "run")] == [2, 4]
    assert done.stderr.count("distillkit:") <= 1 and "fault of distillkit" not in done.stderr


STUCK = """
import os, signal, sys, torch
import torch.distributed as dist
from distillkit.engine.watch import first_to_fail
from distillkit.errors import DistillkitError
from distillkit.jobs.context import job_context
try:
    with job_context(device="cpu", timeout=4) as context:
        context.progress.go_on = "the command"
        context.progress.mark(7)
        context.accelerator.wait_for_everyone()
        other = dist.new_group(backend="gloo")
        if sys.argv[1] == "apart":
            def leads():
                context.accelerator.wait_for_everyone()
            def follows():
                dist.all_reduce(torch.ones(1), group=other)
            (follows if context.rank else leads)()
        if context.rank:
            context.accelerator.wait_for_everyone()
            os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        else:
            context.accelerator.wait_for_everyone()
            context.accelerator.wait_for_everyone()
except DistillkitError as error:
    if first_to_fail():
        print(f"distillkit: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("name", ["SIGSTOP", "SIGKILL", "apart"])
def test_a_process_that_is_stuck_or_gone_is_told_with_the_last_step_and_how_to_go_on(tmp_path, warm, name):
    """And so are processes that wait for each other, each in another operation."""
    (tmp_path / "stuck.py").write_text(STUCK)
    first, second = (
        warm.start([sys.executable, str(tmp_path / "stuck.py"), name], tmp_path, environment(one))
        for one in group_of(2)
    )
    try:
        code, said = first.wait(HANG), first.stdout.read()
        if name == "apart":
            assert second.wait(HANG) == 1
            said += second.stdout.read()
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
    assert code == 1 and said.count("distillkit:") == 1, said
    assert "the command" in said and "step" in said and " 7" in said
    told = {"SIGSTOP": [f"process 1 of 2 (pid {second.pid}"], "SIGKILL": [], "apart": [
        f"process 0 (pid {first.pid}", "barrier, called by leads (", "stuck.py:",
        f"process 1 (pid {second.pid}", "all_reduce, called by follows (", "stuck.py:",
    ]}  # fmt: skip
    assert all(part in said for part in told[name]), said
