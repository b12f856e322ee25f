"""Progressive distillation in the engine: predecessors of stages, cost, resume inside any stage."""

import pytest
import torch

from distillkit import Images
from distillkit.data.images import ImageSource
from distillkit.engine.loop import Stopped
from distillkit_progressive.method import Progressive, ProgressiveConfig
from tests.engine.conftest import Bench, assert_equal_weights, weights


@pytest.fixture
def bench(tiny_teacher, tmp_path):
    made = Bench(tiny_teacher, tmp_path)
    made.sources[Images] = ImageSource.synthetic(tiny_teacher, torch.device("cpu"))
    return made


def recipe(bench):
    return Progressive().recipe(bench.teacher, ProgressiveConfig(start_steps=4, last_share=1.0))


def test_every_stage_starts_from_the_student_of_the_one_before(bench):
    made = recipe(bench)
    trainer = bench.trainer(made, duration=96)  # six steps, two in each of three stages
    predecessor, seen = made.objectives[0].predecessor, []
    students = [trainer.student.denoiser.state_dict()["model.out_conv.weight"].clone()]
    for _ in range(6):
        trainer.train_step()
        seen.append((trainer.student.sampler.steps, predecessor.state_dict()["model.out_conv.weight"].clone()))
        students.append(trainer.student.denoiser.state_dict()["model.out_conv.weight"].clone())
    assert [steps for steps, _ in seen] == [4, 4, 2, 2, 1, 1]
    for k in range(6):
        assert torch.equal(seen[k][1], students[k // 2 * 2]), "frozen at the student that began the stage"
    assert all(p.grad is None for p in predecessor.parameters())


def test_cost_counts_the_predecessor(bench):
    assert bench.counted(recipe(bench)) == {"student": 48, "halving-predecessor": 32}


@pytest.mark.parametrize("stop_at", [1, 2, 3, 5])
def test_resume_inside_any_stage_restores_its_predecessor(bench, stop_at):
    whole = bench.trainer(recipe(bench))
    whole.run(bench.outputs("whole"))
    first, outputs = bench.trainer(recipe(bench)), bench.outputs("parts")
    with pytest.raises(Stopped):
        first.run(outputs, should_stop=lambda: first.step == stop_at)
    second = bench.trainer(recipe(bench))
    second.restore(outputs.checkpoints.load())
    second.run(outputs)
    assert_equal_weights(weights(whole), weights(second))
