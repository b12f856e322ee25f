"""Consistency distillation in the engine: cost, target, resume, samplers of several steps."""

import pytest
import torch

from distillkit.embedded.digits.data import load_digits
from distillkit.data.memory import ImagesInMemory
from distillkit.engine.trainer import Stopped
from distillkit_consistency.method import Consistency, ConsistencyConfig
from tests.engine.conftest import Bench, assert_equal_weights, weights


@pytest.fixture
def bench(tiny_teacher, tmp_path):
    return Bench(tiny_teacher, tmp_path)


@pytest.fixture
def images():
    return ImagesInMemory(*load_digits(), torch.device("cpu"))


def recipe(bench, **settings):
    return Consistency().recipe(bench.teacher, ConsistencyConfig(levels=8, **settings))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"student": 3, "teacher": 2, "consistency_loss-target": 1}),
        ({"target_decay": 0.0}, {"student": 4, "teacher": 2}),
        ({"teacher_free": True}, {"student": 3, "consistency_loss-target": 1}),
        ({"source": "pairs"}, {"student": 3, "teacher": 2, "consistency_loss-target": 1}),
    ],
)
def test_cost_counts_every_network_once(bench, images, settings, expected):
    trainer = bench.trainer(recipe(bench, **settings), images=images)
    with trainer.cost.watch(trainer.roles()):
        trainer.train_step()
    assert trainer.cost.counts == {role: 16 * n for role, n in expected.items()}


def test_target_follows_the_student_slowly_and_gets_no_gradient(bench, images):
    made = recipe(bench, target_decay=0.75)
    trainer = bench.trainer(made, images=images)
    target = made.objectives[0].target.network
    before = [p.clone() for p in target.parameters()]
    trainer.train_step()
    for old, new, student in zip(before, target.parameters(), trainer.student.denoiser.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * student, rtol=1e-5, atol=1e-7)
        assert new.grad is None
    assert any(not torch.equal(a, b) for a, b in zip(before, target.parameters(), strict=True))


@pytest.mark.parametrize("stop_at", [1, 4])
@pytest.mark.parametrize("settings", [{}, {"source": "pairs", "target_decay": 0.0}])
def test_interrupted_and_resumed_equals_uninterrupted(bench, images, settings, stop_at):
    whole = bench.trainer(recipe(bench, **settings), images=images)
    whole.run(bench.outputs("whole"))
    first, outputs = bench.trainer(recipe(bench, **settings), images=images), bench.outputs("parts")
    with pytest.raises(Stopped):
        first.run(outputs, should_stop=lambda: first.step == stop_at)
    second = bench.trainer(recipe(bench, **settings), images=images)
    second.restore(outputs.checkpoints.load())
    second.run(outputs)
    assert_equal_weights(weights(whole), weights(second))


def test_a_run_makes_a_student_of_one_or_more_steps(inside, tmp_path, tiny_teacher_folder):
    from distillkit.evaluation.record import read_record

    done = inside(
        "run", "consistency", "--teacher", tiny_teacher_folder, "--levels", "8", "--duration", "64", "--batch", "16",
        "--evaluation-samples", "100", "--output-dir", "run", "--quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = inside("evaluate", "run", "--samples", "60", "--nfe", "1,2,4", "--quiet", "--output", "records")
    assert measured.returncode == 0, measured.stderr
    records = [read_record(p) for p in (tmp_path / "records").iterdir()]
    assert sorted(r.nfe for r in records) == [1, 2, 4] and len({r.samples_sha256 for r in records}) == 3
    assert len({r.protocol_id for r in records}) == 1
    assert inside("sample", "run", "--num", "4", "--output", "grid.png").returncode == 0


def test_presets_are_valid_for_every_catalogued_teacher():
    from distillkit.runs.config import resolve
    from distillkit.models.edm.catalog import CATALOG

    used = [resolve(Consistency, options={"teacher": name})[1] for name in CATALOG]
    assert {preset.name for preset in used if preset} == {preset.name for preset in Consistency.presets}
