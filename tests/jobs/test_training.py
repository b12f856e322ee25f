"""What every training job shares."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from distillkit import ClassLabels, UsageError
from distillkit.jobs.context import job_context
from distillkit.jobs.sample import make_samples


@pytest.mark.parametrize("command", [("run", "kd", "--pairs-count", "16", "--pairs-steps", "2"), ("teachers", "train")])
def test_a_disk_without_room_for_checkpoints_is_refused_before_the_first_step(command, inside, tmp_path, monkeypatch):
    five = 5 * 2**20
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=five, used=0, free=five))
    short = ("--duration", "32", "--batch", "16", "--output-dir", "run")
    done = inside(*command, *short, *(("--protocol", "none") if command[0] == "run" else ()))
    assert done.returncode == 1 and "4 checkpoints" in done.stderr and "make room" in done.stderr, done.stderr
    assert "training:" not in done.stdout and not list((tmp_path / "run").glob("checkpoints/*"))


def test_what_was_typed_goes_round_for_teachers_and_students_alike(tiny_teacher_folder):
    assert ClassLabels(classes=5).typed_in_turn(["3", "1"], 3).tolist() == [3, 1, 3]
    with job_context(device="cpu", quiet=True) as context:
        of = [make_samples(str(tiny_teacher_folder), 2, context, classes=classes).decoded for classes in (["1"], ["2"])]
        assert not torch.equal(*of)
        with pytest.raises(UsageError, match="classes is empty"):
            make_samples(str(tiny_teacher_folder), 2, context, classes=[])


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes")])
def test_memory_that_runs_out_is_one_message_that_says_what_holds_how_much(error, inside, monkeypatch):
    def runs_out(self, made, wanted):
        raise error

    monkeypatch.setattr("distillkit.parts.distances.NamedDistance.__call__", runs_out)
    done = inside(
        "run", "kd", "--duration", "32", "--batch", "16", "--pairs-count", "16", "--pairs-steps", "2",
        "--protocol", "none", "--output-dir", "run",
    )  # fmt: skip
    assert done.returncode == 1 and "fault of distillkit" not in done.stderr
    for word in (
        "step 1",
        "teacher 1.9 MB",
        "gradients and moments",
        "16 samples",
        "--batch-per-device",
        "--resume run",
    ):
        assert word in done.stderr, done.stderr
