"""Processes with other programs, settings or data are found out before anything is done."""

import pytest

from distillkit.errors import UsageError
from distillkit.jobs import alike
from distillkit.jobs.context import entered, job_context
from distillkit.runs.folder import RunFolder


class Three:
    """Three processes, of which the third says something else."""

    rank, world = 0, 3

    def __init__(self, **said):
        self.said = said

    def gather(self, word):
        _, mine = word
        theirs = {name: value for name, value in {**mine, **self.said}.items() if value is not None}
        return [word, word, ("node-c", theirs)]

    def first(self, word):
        return "runs/of-the-first"


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"torch": "2.6.0"}, "torch 2.6.0, not "),
        ({"Python": "3.13"}, "Python 3.13, not 3."),
        ({"distillkit": None}, "distillkit none, not "),
        ({"distillkit-wan": "0.3"}, "distillkit-wan 0.3, not none"),
    ],
)
def test_a_node_with_other_versions_is_refused_with_both_named(said, named):
    with pytest.raises(UsageError) as refused:
        alike.require_same_versions(Three(**said))
    text = str(refused.value)
    assert "process 2 (on node-c): " in text and named in text and "1 of 3 processes" in text
    assert "process 1" not in text
    alike.require_same_versions(Three())


def test_the_check_is_made_as_a_job_begins(monkeypatch):
    made = []
    monkeypatch.setattr("distillkit.jobs.context.require_same_versions", made.append)
    with job_context(device="cpu", quiet=True) as context:
        assert made == [context.processes]


def test_versions_are_those_of_plugins_too():
    found = alike.versions()
    assert {"Python", "torch", "distillkit"} <= found.keys() and found["Python"].count(".") == 1


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"teacher": "digits, identity 9999"}, "teacher digits, identity 9999, not digits, identity 1234"),
        ({"images": "fingerprint 77"}, "images fingerprint 77, not none"),
        ({"lr": "0.5"}, "lr 0.5, not 0.001"),
    ],
)
def test_unequal_data_and_settings_are_refused_before_anything_is_written(tmp_path, said, named):
    from distillkit.engine.config import TrainingConfig

    with job_context(device="cpu", quiet=True) as context:
        object.__setattr__(context, "processes", Three(**said))
        folder = RunFolder(tmp_path / "run", "distillkit run kd")
        inputs = {"teacher": "digits, identity 1234"}
        with (
            pytest.raises(UsageError) as refused,
            entered(folder, TrainingConfig(lr=1e-3), context, resume=False, inputs=inputs),
        ):
            pass
        assert named in str(refused.value) and "process 2 (on node-c)" in str(refused.value)
        assert not (tmp_path / "run").exists()
        object.__setattr__(context, "processes", Three())
        with entered(folder, TrainingConfig(lr=1e-3), context, resume=False, inputs=inputs):
            assert (tmp_path / "run" / "config.yaml").exists()
        assert str(context.agreed(folder).path) == "runs/of-the-first"
