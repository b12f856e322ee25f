"""Checkpoints are whole or passed over, and a resumed run equals an uninterrupted one bit for bit."""

import copy
import errno
import json
import logging
import math
import os
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit import (
    Diagnostic,
    DistillkitError,
    Objective,
    OneStep,
    Recipe,
    Samples,
    Stage,
    StudentGenerator,
    UsageError,
)
from distillkit.engine import checkpoint as checkpoint_module
from distillkit.engine.checkpoint import Checkpoints
from distillkit.engine.loop import Stopped
from distillkit.engine.optimization import MovingAverage, PowerAverage
from distillkit.engine.outputs import Preview
from distillkit.files import WriteError
from tests.engine.conftest import Toy, assert_equal_weights, weights

SETTINGS = [{}, {"fake_updates": 2}, {"kl_weight": 0.0}]


@pytest.mark.parametrize("stop_at", [1, 3, 5])
@pytest.mark.parametrize("method", SETTINGS)
def test_interrupted_and_resumed_equals_uninterrupted(bench, method, stop_at):
    whole = bench.trainer(bench.recipe(**method))
    whole.run(bench.outputs("whole"))

    first, outputs = bench.trainer(bench.recipe(**method)), bench.outputs("parts")
    with pytest.raises(Stopped) as stopped:
        first.run(outputs, should_stop=lambda: first.step == stop_at)
    assert stopped.value.step == stop_at
    second = bench.trainer(bench.recipe(**method))
    second.restore(outputs.checkpoints.load())
    second.run(outputs)
    assert_equal_weights(weights(whole), weights(second))
    assert whole.cost.counts == second.cost.counts


class Frozen(Objective):
    """Owns a network that is replaced by the student at the start of every stage, as progressive distillation does."""

    needs = (Samples,)

    def __init__(self, student):
        super().__init__()
        self.reference = copy.deepcopy(student.denoiser)
        self.begun = []

    def modules(self):
        return {"reference": self.reference}

    def begin_stage(self, stage, student):
        self.begun.append(stage.name)
        self.reference.load_state_dict(student.denoiser.state_dict())

    def __call__(self, step):
        with torch.no_grad():
            target = self.reference(step.noise, torch.ones(len(step)), step.condition)
        return (step.samples - target).square().mean()


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5])
def test_resume_restores_the_stage_also_at_its_boundary(bench, stop_at):
    def trainer():
        student = StudentGenerator.from_teacher(bench.teacher)
        stages = (Stage("one"), Stage("two", sampler=OneStep(t=40)), Stage("three"))
        return bench.trainer(Recipe(student, [Frozen(student)], stages=stages))

    whole = trainer()
    whole.run(bench.outputs("whole"))
    first, outputs = trainer(), bench.outputs("parts")
    with pytest.raises(Stopped):
        first.run(outputs, should_stop=lambda: first.step == stop_at)
    second = trainer()
    second.restore(outputs.checkpoints.load())
    second.run(outputs)
    assert_equal_weights(weights(whole), weights(second))
    begun = first.recipe.objectives[0].begun + second.recipe.objectives[0].begun
    assert begun == ["one", "two", "three"], "every stage begins exactly once"
    assert second.student.sampler.t == 40


def save(folder, step=1, value=1.0):
    checkpoints = Checkpoints(folder)
    checkpoints.save(step, {"student": {"w": torch.full((3,), value)}}, {"cost": {"teacher": step}})
    checkpoints.wait()
    return checkpoints


def test_round_trip_keeps_the_newest_and_names_it(tmp_path):
    for step in (1, 2, 3):
        checkpoints = save(tmp_path, step, float(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000000002", "step-000000003"]
    assert (tmp_path / "latest").read_text() == "step-000000003\n"
    loaded = checkpoints.load()
    assert (loaded.step, loaded.values) == (3, {"cost": {"teacher": 3}})
    assert loaded.tensors["student"]["w"].tolist() == [3.0] * 3


def test_what_the_training_changes_while_a_checkpoint_is_written_is_not_in_it(tmp_path, monkeypatch):
    real, held = checkpoint_module.write_parts, threading.Event()

    def slow(path, parts):
        assert held.wait(600)
        return real(path, parts)

    monkeypatch.setattr(checkpoint_module, "write_parts", slow)
    checkpoints, weight, values = Checkpoints(tmp_path), torch.zeros(3), {"cost": {"teacher": 1}}
    checkpoints.save(1, {"student": {"w": weight}}, values)
    weight.add_(1)
    values["cost"]["teacher"] = 2
    assert checkpoints.steps == [] and not checkpoints.failed
    held.set()
    loaded = checkpoints.load()
    assert loaded.tensors["student"]["w"].tolist() == [0.0] * 3 and loaded.values == {"cost": {"teacher": 1}}


def test_what_another_process_wrote_elsewhere_is_missed_before_the_checkpoint_is_one(tmp_path):
    checkpoints = save(tmp_path, 1)
    (tmp_path / ".step-000000002").mkdir()
    reports = [({}, None), ({"student-00002-of-00002.safetensors": "0" * 64}, None)]
    with pytest.raises(WriteError, match=r"student-00002-of-00002.*process 1.*--output-dir on a file system that all"):
        checkpoints._complete(2, reports, {})
    assert checkpoints.steps == [1]


def test_a_write_that_fails_ends_the_training_at_the_next_step_in_one_message(bench, monkeypatch):
    def full(path, parts):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("distillkit.files.RETRY_SECONDS", ())
    trainer, outputs = bench.trainer(bench.toy(), duration=960), bench.outputs()
    steps, real = [], trainer.train_step

    def step():
        real()
        steps.append(trainer.step)
        if trainer.step == 3:
            monkeypatch.setattr(checkpoint_module, "write_parts", full)
        if trainer.step == 5:  # the write of step 4 has failed by now
            while not outputs.checkpoints.failed:
                time.sleep(0.01)

    trainer.train_step = step
    with pytest.raises(DistillkitError, match=r"cannot write .*step-000000004.*No space left"):
        trainer.run(outputs)
    assert steps[-1] == 5, "the training goes on without checkpoints"
    assert outputs.checkpoints.load().step == 2


@pytest.mark.parametrize("file", ["student.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning_naming_both(tmp_path, caplog, file, damage):
    save(tmp_path, 1)
    checkpoints = save(tmp_path, 2, 2.0)
    path = tmp_path / "step-000000002" / file
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data[: len(data) // 2] if damage == "truncate" else data)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.load().step == 1
    assert "step-000000002" in caplog.text and "step-000000001" in caplog.text


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), file=st.sampled_from(["s", "j"]))
def test_any_flipped_bit_is_noticed(tmp_path_factory, place, bit, file):
    folder = tmp_path_factory.mktemp("flip")
    checkpoints = save(folder)
    path = folder / "step-000000001" / {"s": "student.safetensors", "j": "state.json"}[file]
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    try:
        loaded = checkpoints.load()
    except DistillkitError:
        return
    # A change of white space in JSON changes nothing.
    assert loaded.tensors["student"]["w"].tolist() == [1.0] * 3 and loaded.values == {"cost": {"teacher": 1}}


def test_all_damaged_is_an_error_not_a_silent_restart(tmp_path):
    checkpoints = save(tmp_path)
    (tmp_path / "step-000000001" / "state.json").write_text("{")
    with pytest.raises(DistillkitError, match=r"every checkpoint in .* is damaged"):
        checkpoints.load()


def test_nothing_to_resume(tmp_path):
    with pytest.raises(UsageError, match="nothing to resume"):
        Checkpoints(tmp_path / "checkpoints").load()


def test_a_save_that_dies_leaves_the_previous_checkpoint_and_no_half_one(tmp_path, monkeypatch):
    checkpoints = save(tmp_path, 1)

    def die(path, data):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_module, "write_parts", die)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert checkpoints.load().step == 1
    (tmp_path / ".step-000000009.1").mkdir()
    checkpoints.clean()
    assert not list(tmp_path.glob(".step-*"))


def test_transient_errors_are_retried_and_a_full_disk_is_one_message(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("distillkit.files.RETRY_SECONDS", (0.0, 0.0, 0.0))
    real, failures = os.fsync, [errno.EIO, errno.EIO]

    def flaky(handle):
        if failures:
            raise OSError(failures.pop(), "I/O error")
        real(handle)

    monkeypatch.setattr(os, "fsync", flaky)
    with caplog.at_level(logging.WARNING):
        save(tmp_path, 1)
    assert caplog.text.count("trying again") == 2

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DistillkitError, match=r"cannot write .*step-000000002.*No space left.*MiB free"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert Checkpoints(tmp_path).load().step == 1
    assert not list(tmp_path.glob(".step-*"))


def test_checkpoints_hold_tensors_and_json_only(bench):
    outputs = bench.outputs()
    bench.trainer().run(outputs)
    names = {p.name for p in (bench.folder / "run" / "checkpoints" / "step-000000006").iterdir()}
    assert {"state.json", "student.safetensors", "average.safetensors", "optimizer-student.safetensors",
            "fake_score.safetensors", "optimizer-fake_score.safetensors",
            "generators.safetensors"} == names  # fmt: skip
    body = json.loads((bench.folder / "run" / "checkpoints" / "step-000000006" / "state.json").read_text())
    assert body["step"] == 6


CLIPPED = Diagnostic("clipped", ok=(0, 0.1), watch=(0, 1), meaning="-")


class Watched(Toy):
    """Logs a value that is judged, early in the training alone."""

    diagnostics = (Diagnostic("level", ok=(0, 1), watch=(0, 10), meaning="-"),)

    def __call__(self, step):
        if step.index < 2:
            step.log("level", torch.tensor(5.0 + step.index))
        return super().__call__(step)


@pytest.mark.parametrize("stop_at", [1, 3, 4])
def test_a_stop_leaves_no_trace_in_log_health_and_pictures(bench, stop_at):
    def run(name, stop=lambda trainer: False, resume=False):
        trainer, seen = bench.trainer(bench.toy(Watched()), log_every=48, sample_every=16), []

        def preview(student, step):
            seen.append(step)
            return Preview(None, {"clipped": step / 5, "nobody's": 1.0})

        outputs = bench.outputs(name, preview=preview, preview_diagnostics=(CLIPPED,))
        if resume:
            trainer.resume(outputs)
        try:
            trainer.run(outputs, should_stop=lambda: stop(trainer))
        except Stopped:
            assert not resume
        path = bench.folder / name / "metrics.jsonl"
        log = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [{**entry, "images_per_second": None} for entry in log], outputs.health, seen

    log, health, pictures = run("whole")
    assert health == {"level": "watch", "clipped": "collapsed"}
    assert [entry["step"] for entry in log if "preview" not in entry] == [2, 3, 4, 6]
    assert [(entry["step"], entry["clipped"]) for entry in log if "preview" in entry] == [(k, k / 5) for k in range(7)]
    assert not any("nobody's" in entry for entry in log)
    _, _, before = run("parts", lambda trainer: trainer.step == stop_at)
    again, resumed, after = run("parts", resume=True)
    assert (again, resumed) == (log, health)
    assert before + after == pictures == [0, 1, 2, 3, 4, 5, 6], "each once: a stop leaves its step's to the next run"


def test_weights_that_are_not_finite_are_not_saved_though_the_loss_is(bench):
    class Poison(Toy):
        def after_step(self, step):
            if step.index == 3:
                next(trainer.student.parameters()).data.fill_(math.nan)

    trainer, outputs = bench.trainer(bench.toy(Poison())), bench.outputs()
    with pytest.raises(DistillkitError, match=r"student: .* holds NaN or infinity after step 4"):
        trainer.run(outputs)
    assert outputs.checkpoints.steps == [2]


def test_what_a_kill_prevented_after_a_save_is_made_up_for(tmp_path):
    for step in (1, 2, 3):
        checkpoints = save(tmp_path, step)
    checkpoints.keep_best(3)
    (tmp_path / "step-000000003").rename(tmp_path / "kept")
    save(tmp_path, 1)
    (tmp_path / "kept").rename(tmp_path / "step-000000003")
    (tmp_path / "best").rename(tmp_path / ".best-former")
    checkpoints.clean()
    checkpoints.settle(3)
    assert (checkpoints.steps, checkpoints.best_step) == ([2, 3], 3)
    assert (tmp_path / "latest").read_text() == "step-000000003\n"


def test_a_file_where_a_checkpoint_is_due_is_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("distillkit.files.time.sleep", lambda seconds: pytest.fail("tried again"))
    (tmp_path / "step-000000001").write_text("x")
    with pytest.raises(WriteError, match=r"step-000000001 is a file, and a folder is due there"):
        save(tmp_path)
    with pytest.raises(WriteError, match="step-000000001"):
        Checkpoints(tmp_path).clean()
    (tmp_path / "latest").mkdir()
    (tmp_path / "step-000000001").unlink()
    with pytest.raises(WriteError, match=r"latest is a folder, and a file is due there"):
        save(tmp_path)


def sealed_anew(folder, values, tensors):
    """A checkpoint whose hashes are right, whatever it holds."""
    path = next(folder.glob("step-*"))
    state = json.loads((path / "state.json").read_text())
    checkpoint = Checkpoints(folder).load()
    anew = Checkpoints(folder)
    anew.save(state["step"], tensors(dict(checkpoint.tensors)), values(copy.deepcopy(checkpoint.values)))
    anew.wait()


def without(*way):
    def change(values):
        inner = values
        for key in way[:-1]:
            inner = inner[key]
        del inner[way[-1]]
        return values

    return change


def unchanged(values):
    return values


NO_STATES = {"generators": {"cpu": torch.zeros(1, 3, dtype=torch.uint8)}}


@pytest.mark.parametrize(
    ("values", "tensors", "named"),
    [
        (without("channels_last"), unchanged, "channels_last"),
        (without("selection", "evaluated"), unchanged, r"selection\.evaluated"),
        (lambda v: {**v, "to_evaluate": 3}, unchanged, "to_evaluate"),
        (lambda v: {**v, "seconds": -1.0}, unchanged, "seconds"),
        (lambda v: {**v, "cost": {"teacher": "much"}}, unchanged, r"cost\.teacher"),
        (lambda v: {**v, "health": {"std_to_teacher": "fine"}}, unchanged, "health"),
        (without("updaters", "student"), unchanged, "updaters.student"),
        (unchanged, without("average"), "average"),
        (unchanged, without("optimizer-student"), "optimizer-student"),
        (unchanged, lambda t: {**t, "student": {"w": torch.zeros(1)}}, "student"),
        (unchanged, lambda t: {**t, "optimizer-student": {"x": torch.zeros(1)}}, "optimizer-student"),
        (unchanged, lambda t: {**t, "optimizer-student": {"0.exp_avg": torch.zeros(7, 7)}}, r"0\.exp_avg"),
        (unchanged, without("generators"), "generators"),
        (unchanged, lambda t: {**t, **NO_STATES}, "generators"),
        (unchanged, lambda t: {**t, "means": {"loss": torch.zeros(3)}}, "means"),
    ],
)
def test_a_whole_checkpoint_that_lacks_something_is_named_with_its_field(bench, values, tensors, named):
    first, outputs = bench.trainer(bench.recipe()), bench.outputs("parts")
    with pytest.raises(Stopped):
        first.run(outputs, should_stop=lambda: first.step == 1)
    sealed_anew(outputs.checkpoints.folder, values, tensors)
    second = bench.trainer(bench.recipe())
    with pytest.raises(DistillkitError, match=named) as refused:
        second.resume(outputs)
    assert "step-000000001" in str(refused.value)


def test_a_damaged_checkpoint_of_a_later_step_takes_no_place(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (60, 80, 85, 100):
        checkpoints.path(step).mkdir(parents=True)
    checkpoints.settle(85)
    assert checkpoints.steps == [80, 85, 100], "two that can be resumed, beside what is written again"


@pytest.mark.parametrize("kind", ["moving", "power"])
def test_an_average_has_the_running_statistics_of_its_module(kind):
    """Before: those of the start."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    target = copy.deepcopy(module)
    average = (
        MovingAverage(module, target, halflife=100, rampup=0.0) if kind == "moving"
        else PowerAverage(module, target, sigma_rel=0.1)
    )  # fmt: skip
    module(torch.randn(50, 3) + 5)
    average.update(8, 80)
    assert target[1].running_mean.abs().max() > 0 and torch.equal(target[1].running_mean, module[1].running_mean)
    module(torch.randn(50, 3) - 5)
    average.restart()
    assert torch.equal(target[1].running_var, module[1].running_var) and target[1].num_batches_tracked == 2
