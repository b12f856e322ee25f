"""Work beside the training ends before the process does."""

import subprocess
import sys
import threading
import time

import pytest

from distillkit.engine.background import Background


class Slow:
    """Takes its time to go, as memory does that belongs to a device; it is held by nothing but the thread."""

    begins, gone = threading.Event(), False

    def __call__(self):
        assert self.begins.wait(60)
        return 1

    def __del__(self):
        time.sleep(0.3)
        Slow.gone = True


def test_what_the_work_held_is_gone_when_it_was_waited_for():
    work = Background(Slow(), "some work")
    Slow.begins.set()
    assert work.result() == 1 and Slow.gone and not work.failed


def test_a_failure_is_heard_by_whoever_waits():
    def failing():
        raise ValueError("no")

    work = Background(failing, "some work")
    assert isinstance(work.wait(), ValueError) and work.failed
    with pytest.raises(ValueError, match="no"):
        work.result()


ENDS = """
import sys, threading, torch
from distillkit.engine.background import Background

begins = threading.Event()

class Sorting:
    def __call__(self):
        assert begins.wait(60)

    def __del__(self):
        for _ in range(20):
            torch.sort(torch.randn(300_000))

work = Background(Sorting(), "some work")
begins.set()
work.result()
sys.exit(130)
"""


def test_a_process_that_ends_after_it_keeps_its_exit_code():
    """Before: 134, "terminate called without an active exception", where a thread was within torch at the end; seen
    after Ctrl-C on a GPU."""
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")
