"""`teachers train digits`: the same engine, so the same interruptions; and what it makes is a teacher."""

import json
import signal
import time

import torch
from safetensors.torch import load_file

SHORT = ["--set", "training.duration=2560", "--set", "training.batch=64", "--set", "training.log_every=64",
         "--set", "training.checkpoint_every=320", "--set", "evaluation.samples=20"]  # fmt: skip


def test_training_is_interruptible_and_makes_a_teacher_that_can_be_distilled(cli, start, tmp_path):
    whole = cli("teachers", "train", "digits", *SHORT, "--output-dir", "whole")
    assert whole.returncode == 0, whole.stderr
    assert "FD[digits8cnn/fc64]" in whole.stdout and "--teacher whole/teacher" in whole.stdout
    process = start("teachers", "train", "digits", *SHORT, "--output-dir", "parts")
    log, deadline = tmp_path / "parts" / "metrics.jsonl", time.monotonic() + 90
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert "distillkit teachers train digits --resume parts" in process.stdout.read()
    resumed = cli("teachers", "train", "digits", "--resume", "parts")
    assert resumed.returncode == 0, resumed.stderr
    a, b = (load_file(tmp_path / name / "teacher" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a | b)
    losses = [json.loads(x)["loss/denoising_score_matching"] for x in log.read_text().splitlines() if "loss/" in x]
    assert losses[-1] < losses[0]
    # Its teacher.json names it digits, so the preset for digits applies to the folder too.
    plan = cli("run", "dmd", "--teacher", "parts/teacher", "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert "preset digits" in " ".join(plan.stdout.replace("│", " ").split())
