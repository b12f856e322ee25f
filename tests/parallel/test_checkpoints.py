"""Checkpoints of sharded trainings: every process writes its own, and any number of processes reads them."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import distillkit


def test_sharded_checkpoints_are_whole_for_any_reader(tmp_path, together):
    done = together(Path(__file__).parent / "sharded.py", tmp_path / "checkpoints", processes=3)
    assert [one.stdout.split() for one in done] == [[f"done:{k}"] for k in range(3)], own_failures(done)


def own_failures(done):
    """What the processes say that did not fail because another did."""
    return "\n".join(one.stderr[-3000:] for one in done if "closed by peer" not in one.stderr)


def log_of(folder):
    """What was logged, but for what a clock has measured."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def losses(log):
    return [value for line in log for key, value in line.items() if key.startswith("loss/")]


def test_a_sharded_run_killed_at_its_checkpoints_resumes_to_the_same_and_on_one_process(
    tmp_path, together, tiny_teacher_folder
):
    program, whole, run = Path(__file__).parent / "killed.py", tmp_path / "whole", tmp_path / "run"

    def launched(folders, *killed):
        return together(program, tiny_teacher_folder, ",".join(map(str, folders)), ",".join(killed))

    # The second process while it writes its piece of the second checkpoint.
    first, second = launched([whole, run], "1", "open", "/student-00002-of-00002", "2")
    assert (first.returncode, second.returncode) == (1, -9), (first.stderr[-3000:], second.stderr[-3000:])
    assert "another process of this job has ended" in first.stderr, first.stderr
    assert f"--resume {run}" in first.stderr
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == ["step-000000002"]
    assert sum(1 for _ in (whole / "checkpoints" / "step-000000006").glob("student-0000?-of-00002.safetensors")) == 2
    alone = shutil.copytree(run, tmp_path / "alone")
    # The first process before it puts a checkpoint into its place that all have written.
    first, second = launched([run], "0", "os.rename", ".step-000000004", "1")
    assert (first.returncode, second.returncode) == (-9, 1), (first.stderr[-3000:], second.stderr[-3000:])
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == ["step-000000002", "step-000000003"]
    assert [one.stdout for one in launched([run], "none", "", "", "0")] == ["ended\n"] * 2
    assert log_of(run) == log_of(whole) and len(log_of(run)) > 8
    assert same_files(run, whole) == []
    # Its pieces are enough for one process, which holds all.
    distillkit.distil("dmd", resume=alone, parallel="replicate", quiet=True)
    assert losses(log_of(alone)) == pytest.approx(losses(log_of(whole)), rel=1e-4)
    assert (alone / "checkpoints" / "step-000000006" / "student.safetensors").is_file()
    for selector in ("@latest", "@4", ""):
        ours, theirs = (distillkit.load_student(f"{folder}{selector}") for folder in (run, whole))
        assert torch.equal(ours(4, seed=0), theirs(4, seed=0))


def same_files(run, whole):
    """The names of weights that differ or are in one of two runs alone."""
    names = {path.relative_to(f) for f in (run, whole) for path in f.rglob("*.safetensors")}
    return [str(n) for n in names if not (run / n).is_file() or (run / n).read_bytes() != (whole / n).read_bytes()]
