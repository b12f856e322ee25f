"""Warm processes are processes: their end, their surroundings and their output are their own."""

import json
import os
import signal
import sys

import pytest

from tests.conftest import HANG, command, environment


@pytest.mark.parametrize(
    ("code", "ended", "said"),
    [
        ("pass", 0, ""), ("import sys; sys.exit(3)", 3, ""), ("import sys; sys.exit('why')", 1, "why\n"),
        ("import sys; sys.exit(-1)", 255, ""), ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("import atexit, sys; atexit.register(lambda: sys.stderr.write('last')); sys.exit(4)", 4, "last"),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM, ""),
    ],
)  # fmt: skip
def test_a_warm_process_ends_as_a_fresh_one_does(warm, tmp_path, code, ended, said):
    done = warm.run([sys.executable, "-c", code], tmp_path, environment(), HANG)
    assert done.returncode == ended and done.stderr.endswith(said) and bool(done.stderr) == bool(said)


SURROUNDINGS = """
import json, os, sys, torch
os.environ["LEFT"] = "behind"
torch.set_default_dtype(torch.float64)
print(json.dumps([os.getpid(), os.getcwd(), os.environ.get("GIVEN"), sys.argv]))
"""


def test_nothing_of_one_is_seen_by_the_next(warm, tmp_path):
    (tmp_path / "around.py").write_text(SURROUNDINGS)
    told = []
    for given in ("1", "2"):
        arguments = [sys.executable, str(tmp_path / "around.py"), given]
        done = warm.run(arguments, tmp_path, environment({"GIVEN": given}), HANG)
        told.append(json.loads(done.stdout))
    asked = "import os, torch; print(torch.get_default_dtype(), {'LEFT', 'NO_COLOR'} & set(os.environ))"
    fewer = {name: value for name, value in environment().items() if name != "NO_COLOR"}
    after = warm.run([sys.executable, "-c", asked], tmp_path, fewer, HANG)
    assert after.stdout == "torch.float32 set()\n"
    assert len({one[0] for one in told} | {os.getpid()}) == 3, "each has a pid of its own"
    for given, (_, folder, seen, arguments) in zip(("1", "2"), told, strict=True):
        assert folder == str(tmp_path) and seen == given and arguments == [str(tmp_path / "around.py"), given]


def test_the_entry_point_is_the_same_file(warm, cli, tmp_path):
    for arguments in (("--version",), ("nonsense",)):
        fresh = cli(*arguments, fresh=True)
        one = warm.run(command(*arguments), tmp_path, environment(), HANG)
        assert (one.returncode, one.stdout, one.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)
