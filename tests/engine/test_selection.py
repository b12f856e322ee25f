"""Figures during the training, and the best checkpoint, also when a run is interrupted at the worst moments."""

import json
import math
import shutil

import pytest
import torch

from distillkit import DistillkitError, OneStep, Stage, UsageError
from distillkit.engine.checkpoint import Checkpoints
from distillkit.engine.loop import Stopped
from distillkit.engine.outputs import Evaluation, Selection
from tests.engine.conftest import assert_equal_weights, weights

VALUES = {1: 0.5, 2: 0.2, 3: 0.4, 4: 0.3, 5: 0.9, 6: 0.6}
"""By step."""


class Judge:
    """Gives each step its figure; may die in one."""

    def __init__(self, values=VALUES, dies_at=None):
        self.values, self.dies_at, self.step = values, dies_at, None
        self.asked = []

    def of(self, trainer):
        self.trainer = trainer
        return self

    def __call__(self, student):
        step = self.trainer.step
        torch.rand(3)  # what it draws is not missing from the training
        self.asked.append(step)
        if step == self.dies_at:
            raise KeyboardInterrupt
        return Evaluation("FD[test]", self.values[step], 0.01, 100, nfe=1.0)


def lines(bench, name):
    return [json.loads(line) for line in (bench.folder / name / "metrics.jsonl").read_text().splitlines()]


def evaluations(bench, name):
    return {entry["step"]: entry["evaluation"]["value"] for entry in lines(bench, name) if "evaluation" in entry}


def dropping(bench):
    """A recipe that draws from the global generator in every step."""
    recipe = bench.toy()
    original = recipe.objectives[0].__class__.__call__

    class Noisy(recipe.objectives[0].__class__):
        def __call__(self, step):
            return original(self, step) * torch.rand(())

    return bench.toy(Noisy())


def test_the_best_checkpoint_is_kept_though_it_is_old(bench):
    trainer, judge = bench.trainer(bench.toy(), evaluate_every=16, checkpoint_every=96), Judge()
    outputs = bench.outputs(evaluate=judge.of(trainer))
    trainer.run(outputs)
    assert judge.asked == [1, 2, 3, 4, 5, 6]
    assert trainer.selection == {"best_step": 2, "best_value": 0.2, "evaluated": 6}
    assert outputs.checkpoints.steps == [5, 6] and outputs.checkpoints.best_step == 2
    best, latest = outputs.checkpoints.load("best"), outputs.checkpoints.load("latest")
    assert (best.step, latest.step, outputs.checkpoints.load(5).step) == (2, 6, 5)
    assert best.values["selection"] == {"best_step": 2, "best_value": 0.2, "evaluated": 2}
    assert latest.values["selection"] == trainer.selection
    assert evaluations(bench, "run") == VALUES
    last = {"label": "FD[test]", "value": 0.6, "error": 0.01, "samples": 100, "nfe": 1.0}
    assert lines(bench, "run")[-1]["evaluation"] == last
    assert "FD[test] 0.6" in outputs.remark(6, {})


def test_the_best_takes_no_space_while_it_is_among_the_newest(bench):
    trainer = bench.trainer(bench.toy(), evaluate_every=16)
    trainer.run(bench.outputs(evaluate=Judge({step: -step for step in VALUES}).of(trainer)))
    folder = bench.folder / "run" / "checkpoints"
    for file in (folder / "best").iterdir():
        assert file.samefile(folder / "step-000000006" / file.name)
    assert sorted(p.name for p in folder.iterdir()) == ["best", "latest", "step-000000005", "step-000000006"]


@pytest.mark.parametrize("moment", ["stop", "evaluation", "after the figure", "after the checkpoint learnt of it"])
@pytest.mark.parametrize("at", [2, 3])
def test_an_interrupted_run_keeps_the_same_best_and_the_same_log(bench, monkeypatch, moment, at):
    changes = {"evaluate_every": 16, "checkpoint_every": 96, "log_every": 16}
    whole = bench.trainer(dropping(bench), **changes)
    whole.run(bench.outputs("whole", evaluate=Judge().of(whole)))

    first = bench.trainer(dropping(bench), **changes)
    judge = Judge(dies_at=at if moment == "evaluation" else None).of(first)
    outputs = bench.outputs("parts", evaluate=judge)
    with monkeypatch.context() as patch:

        def die(*arguments):
            if first.step == at:
                raise KeyboardInterrupt

        if moment == "after the figure":
            patch.setattr(outputs.trackers, "log", lambda values, images: "FD[test]" in values and die())
        if moment.endswith("learnt of it"):
            real = Checkpoints.update
            patch.setattr(Checkpoints, "update", lambda self, *a: (real(self, *a), die()))
        with pytest.raises(Stopped if moment == "stop" else KeyboardInterrupt):
            first.run(outputs, should_stop=lambda: moment == "stop" and first.step == at)

    second = bench.trainer(dropping(bench), **changes)
    outputs = bench.outputs("parts", evaluate=Judge().of(second))
    second.resume(outputs)
    assert second.step == at
    second.run(outputs)
    assert second.selection == whole.selection
    assert outputs.checkpoints.best_step == 2
    assert_equal_weights(weights(whole), weights(second))
    timeless = [[{k: v for k, v in entry.items() if k != "images_per_second"} for entry in lines(bench, name)]
                for name in ("whole", "parts")]  # fmt: skip
    assert timeless[0] == timeless[1]


def test_figures_of_students_that_are_sampled_otherwise_are_not_compared(bench):
    stages = (Stage("one"), Stage("two", sampler=OneStep(t=40)))
    trainer = bench.trainer(bench.toy(stages=stages), evaluate_every=16)
    outputs = bench.outputs(evaluate=Judge().of(trainer))
    trainer.run(outputs)
    assert trainer.selection == {"best_step": 4, "best_value": 0.3, "evaluated": 3}
    assert outputs.checkpoints.best_step == 4


def test_figures_that_are_not_numbers_are_never_the_best(bench):
    trainer = bench.trainer(bench.toy(), evaluate_every=32)
    outputs = bench.outputs(evaluate=Judge({2: math.nan, 4: 0.5, 6: math.inf}).of(trainer))
    trainer.run(outputs)
    assert trainer.selection == {"best_step": 4, "best_value": 0.5, "evaluated": 3}
    assert evaluations(bench, "run") == {2: "nan", 4: 0.5, 6: "inf"}
    assert not Selection(best_step=1, best_value=0.5).take(2, 0.5), "of equals the first"


def test_nothing_measured_is_nothing_selected(bench):
    trainer, outputs = bench.trainer(bench.toy(), evaluate_every=16), bench.outputs()
    trainer.run(outputs)
    assert trainer.selection == {"best_step": None, "best_value": None, "evaluated": 0}
    assert outputs.checkpoints.best_step is None and not evaluations(bench, "run")
    with pytest.raises(UsageError, match="best"):
        outputs.checkpoints.load("best")


def test_a_checkpoint_describes_its_student(bench):
    trainer = bench.trainer(bench.toy(stages=(Stage("one", sampler=OneStep(t=20)),)))
    outputs = bench.outputs(describe_student=lambda sampler, images: {"t": sampler.t, "images_seen": images})
    trainer.run(outputs)
    assert [outputs.checkpoints.load(step).values["student"] for step in (4, 6)] == [
        {"t": 20.0, "images_seen": 64},
        {"t": 20.0, "images_seen": 96},
    ]


def test_selectors_name_what_there_is(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, {"student": {"w": torch.full((3,), float(step))}}, {})
    assert checkpoints.load(2).tensors["student"]["w"].tolist() == [2.0] * 3
    with pytest.raises(UsageError, match="1, 2, 3"):
        checkpoints.load(7)
    (tmp_path / "step-000000002" / "student.safetensors").write_bytes(b"")
    with pytest.raises(DistillkitError, match="step-000000002"):
        checkpoints.load(2)


def test_without_hard_links_the_best_is_a_copy(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError("not supported")

    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"student": {"w": torch.full((3,), float(step))}}, {})
        checkpoints.keep_best(step)
    shutil.rmtree(tmp_path / "step-000000002")
    assert checkpoints.load("best").step == 2
    (tmp_path / ".best.123").mkdir()
    checkpoints.clean()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "latest", "step-000000001"]
