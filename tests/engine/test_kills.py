"""A run that is killed at any moment and resumed is the run that was not killed, and nothing is left over."""

import json
import os
import sys

import pytest
from safetensors.torch import load_file

import distillkit
from distillkit.errors import UsageError
from tests.killing import killed

pytestmark = pytest.mark.skipif(
    os.name != "posix" or sys.platform == "darwin", reason="forks a process that uses torch"
)

TIMES = ("images_per_second", "seconds")


@pytest.fixture
def work(tiny_teacher_folder, tmp_path):
    def run(name, method="dmd", **options):
        if not options.get("resume"):
            own = {"teacher": tiny_teacher_folder, "distance": "l2", "pairs_count": 32}
            if method == "dmd2":
                own = {"teacher": "mixture", "gan_weight": 1e-2}
            options = {
                **own, "output_dir": tmp_path / name, "duration": 96, "batch": 16, "log_every": 16, "lr": 1e-3,
                "checkpoint_every": 32, "sample_every": 48, "evaluate_every": 48, "evaluation_samples": 30,
                "evaluate_samples": 30, **options,
            }  # fmt: skip
        return distillkit.distil(method, quiet=True, **options)

    return run


def timeless(value):
    """Without what a clock has measured."""
    if isinstance(value, dict):
        left = {key: timeless(inner) for key, inner in value.items() if key not in (*TIMES, "created", "environment")}
        return {key: inner for key, inner in left.items() if key not in ("name", "digest")}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def made(folder):
    """All that two runs must agree in: log, record, weights, and the files there are."""
    log = [timeless(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    record = timeless(json.loads((folder / "record.json").read_text()))
    weights = {name: value.tolist() for name, value in load_file(folder / "student" / "model.safetensors").items()}
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.parent.name != "records")
    return log, record, weights, files


@pytest.mark.parametrize("method", ["dmd", "dmd2"])
def test_a_run_killed_at_any_change_of_its_folder_resumes_to_the_same(work, tmp_path, method):
    # In this process first: what it imports, the children need not.
    work("whole", method)
    whole = made(tmp_path / "whole")
    # Before the configuration is there, before the first checkpoint, in the middle, after the last step.
    for at in (3, 30, 104, 185) if method == "dmd" else (130,):
        folder = tmp_path / f"at-{at}"
        assert killed(lambda name=folder.name: work(name, method), folder, at) == at - 1
        begun = (folder / "config.yaml").exists()
        if begun:
            with pytest.raises(UsageError, match="--resume"):
                work(folder.name, method)
        work(folder.name, method, **({"resume": folder} if begun else {}))
        assert made(folder) == whole, at
        assert json.loads((folder / "record.json").read_text())["health"] or method == "dmd2"


def test_a_run_killed_again_and_again_comes_to_its_end(work, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    work("whole")
    killed(lambda: work("run"), folder, 45)
    killed(lambda: work("run", resume=folder), folder, 33)
    work("run", resume=folder)
    assert made(folder) == made(whole)


def test_a_longer_run_killed_before_its_end_goes_on(work, tmp_path):
    folder = tmp_path / "run"
    work("run")
    changes = killed(lambda: work("run", resume=folder, duration=160), folder, 25)
    assert changes == 24 and (folder / "record.json").exists()
    work("run", resume=folder)
    record = json.loads((folder / "record.json").read_text())
    assert record["config"]["training"]["duration"] == 160
    with pytest.raises(UsageError, match="finished"):
        work("run", resume=folder)
