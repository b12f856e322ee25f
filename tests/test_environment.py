"""What a run or a measurement keeps of the circumstances in which it was made."""

import sys
from pathlib import Path

import pytest

import distillkit
from distillkit.environment import environment

INSIDE = str(Path(distillkit.__file__).parent / "__main__.py")


@pytest.mark.parametrize(
    ("argv", "started", "command"),
    [
        (["/venv/bin/distillkit", "run", "dmd"], ["/venv/bin/python", "/venv/bin/distillkit", "run", "dmd"],
         "distillkit run dmd"),
        ([INSIDE, "run", "dmd"], ["/venv/bin/python", "-m", "distillkit", "run", "dmd"], "distillkit run dmd"),
        (["/home/me/train.py", "--lr", "1"], ["/venv/bin/python3", "train.py", "--lr", "1"], "python3 train.py --lr 1"),
        (["-c"], ["python", "-c", "open('https://me:secret@host/x?token=y')"],
         "python -c 'open('\"'\"'https://***@host/x?***'\"'\"')'"),
    ],
)  # fmt: skip
def test_the_command_is_the_one_that_was_given(monkeypatch, argv, started, command):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", started)
    assert environment()["command"] == command
