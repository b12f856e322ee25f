"""Networks in parts give what whole ones give."""

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import HANG, environment, group_of

HERE = Path(__file__).parent


def ended_well(done):
    for rank, one in enumerate(done):
        assert one.stdout.split() == [f"done:{rank}"], one.stderr[-3000:]


@pytest.mark.parametrize(
    ("processes", "parallels", "steps"), [(3, "shard,replicate", 5), (4, "hybrid", 4)], ids=["shard", "hybrid"]
)
def test_several_processes_end_where_one_does(together, processes, parallels, steps):
    """On three a layer of five rows is shared unevenly, and a scalar not at all."""
    ended_well(together(HERE / "equality.py", parallels, str(steps), processes=processes))


def test_what_networks_in_parts_must_not_get_wrong(together, tmp_path):
    ended_well(together(HERE / "parts.py", tmp_path))


def test_text_to_image_pipelines_give_the_same_in_parts(together, tmp_path):
    """DiT evaluates a part of its first block once more, outside of it; a UNet has blocks within blocks."""
    done = together(HERE / "families.py", tmp_path, "sd", "dit")
    for rank, one in enumerate(done):
        assert one.stdout.split() == ["sd", "dit", f"done:{rank}"], one.stderr[-3000:]


DIES = """
import os, signal, sys
from distillkit.engine import trainer
from distillkit.cli import main
real, (rank, name) = trainer.Trainer.train_step, sys.argv[1:3]
def step(self):
    if self.step == 3 and os.environ["RANK"] == rank:
        os.kill(os.getpid(), getattr(signal, name))
    real(self)
trainer.Trainer.train_step = step
sys.argv = ["distillkit", *sys.argv[3:]]
main()
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize(("rank", "name"), [(0, "SIGKILL"), (1, "SIGSTOP")])
def test_one_process_that_is_gone_or_stuck_ends_all_with_one_message(warm, small_run, tmp_path, rank, name):
    (tmp_path / "dies.py").write_text(DIES)
    run = [*small_run, "--parallel", "shard", "--timeout", "8", "--output-dir", str(tmp_path / "run")]
    processes = [
        warm.start([sys.executable, str(tmp_path / "dies.py"), str(rank), name, *run], tmp_path, environment(one))
        for one in group_of(2)
    ]
    try:
        left = processes[1 - rank]
        code, said = left.wait(HANG), left.stdout.read()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert code == 1 and said.count("distillkit:") == 1, said
    assert "--resume" in said and "Traceback" not in said
