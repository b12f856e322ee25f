"""Consistency distillation in the engine: cost, resume."""

import pytest
import torch

from distillkit import Images
from distillkit.data.images import ImageSource
from distillkit.engine.loop import Stopped
from distillkit_consistency.method import Consistency, ConsistencyConfig
from tests.engine.conftest import Bench, assert_equal_weights, weights


@pytest.fixture
def bench(tiny_teacher, tmp_path):
    made = Bench(tiny_teacher, tmp_path)
    made.sources[Images] = ImageSource.synthetic(tiny_teacher, torch.device("cpu"))
    return made


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
def test_cost_counts_every_network_once(bench, settings, expected):
    assert bench.counted(recipe(bench, **settings)) == {role: 16 * n for role, n in expected.items()}


@pytest.mark.parametrize("settings", [{}, {"source": "pairs", "target_decay": 0.0}])
def test_interrupted_and_resumed_equals_uninterrupted(bench, settings):
    whole = bench.trainer(recipe(bench, **settings))
    whole.run(bench.outputs("whole"))
    first, outputs = bench.trainer(recipe(bench, **settings)), bench.outputs("parts")
    with pytest.raises(Stopped):
        first.run(outputs, should_stop=lambda: first.step == 2)
    second = bench.trainer(recipe(bench, **settings))
    second.restore(outputs.checkpoints.load())
    second.run(outputs)
    assert_equal_weights(weights(whole), weights(second))
