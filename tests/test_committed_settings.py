"""Settings that are committed for users are settings of this version."""

from pathlib import Path

import pytest

from distillkit.jobs.teacher_config import resolve_teacher
from distillkit.runs.validation import read_config

FILES = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.yaml"))


def test_there_are_some():
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_teachers_settings_are_accepted(path, tmp_path):
    config = resolve_teacher({"name": "small", "data": {"path": str(tmp_path)}}, read_config(path))
    assert config.training.duration
