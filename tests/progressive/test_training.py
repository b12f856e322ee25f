"""Progressive distillation in the engine: stages, predecessors, resume inside any stage, the student it leaves."""

import pytest
import torch

from distillkit import load_student
from distillkit.embedded.digits.data import load_digits
from distillkit.data.memory import ImagesInMemory
from distillkit.engine.trainer import Stopped
from distillkit_progressive.method import Progressive, ProgressiveConfig
from tests.engine.conftest import Bench, assert_equal_weights, weights


@pytest.fixture
def bench(tiny_teacher, tmp_path):
    return Bench(tiny_teacher, tmp_path)


@pytest.fixture
def images():
    return ImagesInMemory(*load_digits(), torch.device("cpu"))


def recipe(bench, **settings):
    return Progressive().recipe(bench.teacher, ProgressiveConfig(start_steps=4, last_share=1.0, **settings))


@pytest.mark.parametrize(
    ("start", "end", "counts"),
    [(4, 1, [4, 2, 1]), (512, 8, [512, 256, 128, 64, 32, 16, 8]), (1, 1, [1]), (6, 2, [6, 3])],
)
def test_steps_are_halved(start, end, counts):
    assert ProgressiveConfig(start_steps=start, end_steps=end).steps() == counts


def test_every_stage_starts_from_the_student_of_the_one_before(bench, images):
    made = recipe(bench)
    trainer = bench.trainer(made, images=images, duration=96)  # six steps, two in each of three stages
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


def test_cost_counts_the_predecessor(bench, images):
    trainer = bench.trainer(recipe(bench), images=images)
    with trainer.cost.watch(trainer.roles()):
        trainer.train_step()
    assert trainer.cost.counts == {"student": 48, "halving-predecessor": 32}


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5])
def test_resume_inside_any_stage_restores_its_predecessor(bench, images, stop_at):
    whole = bench.trainer(recipe(bench), images=images, duration=96)
    whole.run(bench.outputs("whole"))
    first, outputs = bench.trainer(recipe(bench), images=images, duration=96), bench.outputs("parts")
    with pytest.raises(Stopped):
        first.run(outputs, should_stop=lambda: first.step == stop_at)
    second = bench.trainer(recipe(bench), images=images, duration=96)
    second.restore(outputs.checkpoints.load())
    second.run(outputs)
    assert_equal_weights(weights(whole), weights(second))


def test_a_run_leaves_a_student_of_one_euler_step(inside, tmp_path, tiny_teacher_folder):
    done = inside(
        "run", "progressive", "--teacher", tiny_teacher_folder, "--start-steps", "4", "--duration", "96",
        "--batch", "16", "--source", "pairs", "--pairs-count", "32", "--evaluation-samples", "100",
        "--output-dir", "run", "--quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    student = load_student(tmp_path / "run")
    assert student.description.nfe == 1 and student.description.sampler["kind"] == "euler"
    assert student(3).shape == (3, 1, 8, 8)
    refused = inside("evaluate", "run", "--samples", "60", "--nfe", "2")
    assert refused.returncode == 2 and "fixed number of evaluations" in refused.stderr


def test_presets_are_valid_and_their_durations_are_the_papers():
    from distillkit.runs.config import resolve

    config, preset = resolve(Progressive, options={"teacher": "edm-cifar10-cond"})
    # Eleven stages, the last two twice as long: 13 x 50k iterations.
    assert preset.name == "cifar10" and config.training.steps == 650_000
    config, _ = resolve(Progressive, options={"teacher": "edm-imagenet64"})
    assert len(ProgressiveConfig(**config.settings).steps()) == 10 and config.training.steps == 600_000
    assert resolve(Progressive, options={"teacher": "digits"})[1].name == "digits"
