"""The page on long runs: its tables are the formulas', and its script goes on until the run is finished."""

import os
import re
import signal
import subprocess
import time

import pytest

from tests.conftest import HANG
from tools.long_run_tables import PAGE, TOOL, tables
from tools.pages import between, rewrite


def test_the_tables_are_those_of_the_formulas():
    written = between(PAGE, TOOL)
    assert written == tables(), "run `python -m tools.long_run_tables`"
    assert written.count("| hybrid |") == 3


def test_a_table_is_written_into_its_place_alone(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin: tools/x.py -->\nold\n<!-- end -->\nafter\n")
    rewrite(page, "x", "new\n")
    assert page.read_text() == "before\n<!-- begin: tools/x.py -->\nnew\n<!-- end -->\nafter\n"
    assert between(page, "x") == "new\n"
    with pytest.raises(ValueError, match=r"page\.md has no place for what tools/y\.py writes"):
        rewrite(page, "y", "new\n")


SRUN = """#!/bin/bash
echo "$@" >> {place}/launched
case "$*" in *--resume*) touch {run}/record.json; exit 0;; esac
trap 'mkdir -p {run}; touch {run}/config.yaml; exit 143' TERM
touch {place}/at-work
while true; do sleep 0.05; done
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo node0; else echo "$@" >> {place}/requeued; fi
"""


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_the_script_goes_on_in_another_job_once_its_time_is_over(tmp_path):
    [script] = re.findall(r"```bash title=\"long.sbatch\"\n(.*?)```", PAGE.read_text(), re.DOTALL)
    run = tmp_path / "runs" / "dmd"
    (tmp_path / "long.sbatch").write_text(script.replace("run=/shared/runs/dmd", f"run={run}"))
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text.format(place=tmp_path, run=run))
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_NNODES": "4", "SLURM_JOB_ID": "7",
                   "SLURM_JOB_NODELIST": "node[0-3]"}  # fmt: skip
    command = ["bash", str(tmp_path / "long.sbatch")]
    first = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + HANG
    while not (tmp_path / "at-work").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(HANG) == 0 and (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert subprocess.run(command, env=environment, check=False, timeout=HANG).returncode == 0
    assert (tmp_path / "requeued").read_text() == "requeue 7\n", "once: the run is finished"
    begun, resumed = (tmp_path / "launched").read_text().splitlines()
    assert "--nnodes 4" in begun and "--rdzv_endpoint node0:29500" in begun
    assert begun.endswith(f"distillkit run dmd --teacher edm-imagenet64 --output-dir {run}")
    assert resumed.endswith(f"distillkit run dmd --resume {run}")
