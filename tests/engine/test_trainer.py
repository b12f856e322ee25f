"""The loop: what is updated when, at what cost, and independent of how the work is shared."""

import json
import math

import pytest
import torch

from distillkit import Diagnostic, DistillkitError, Stage, UsageError
from distillkit.engine.config import INTERVALS, TrainingConfig
from distillkit.engine.optimization import MovingAverage, learning_rate_factor
from distillkit.engine.trainer import Trainer
from distillkit.jobs.context import job_context
from distillkit.jobs.training import train
from distillkit.runs.folder import RunFolder
from tests.engine.conftest import Toy, assert_equal_weights, weights


def test_training_moves_student_and_learner_and_leaves_the_teacher_alone(bench):
    before = {k: v.clone() for k, v in bench.teacher.denoiser.state_dict().items()}
    trainer = bench.trainer()
    start = weights(trainer)
    trainer.run(bench.outputs())
    assert all(torch.equal(v, before[k]) for k, v in bench.teacher.denoiser.state_dict().items())
    moved = {name.split(".")[0] for name, value in weights(trainer).items() if not torch.equal(value, start[name])}
    assert moved == {"student", "average", "fake_score"}


def test_same_seed_same_weights_other_seed_other_weights(bench):
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer = bench.trainer(seed=seed)
        trainer.run(bench.outputs(name))
        torch.rand(3)  # another user of the global generator disturbs nothing
        runs.append(weights(trainer))
    assert_equal_weights(runs[0], runs[1])
    assert any(not torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_micro_batches_give_the_gradients_of_the_whole_batch(bench):
    runs = []
    for name, limit in (("whole", None), ("parts", 5)):
        trainer = bench.trainer(batch_per_device=limit, duration=32)
        trainer.run(bench.outputs(name))
        runs.append((weights(trainer), bench.folder / name / "metrics.jsonl"))
    for name in runs[0][0]:
        torch.testing.assert_close(runs[0][0][name], runs[1][0][name], rtol=1e-3, atol=2e-4)
    logs = [[json.loads(line) for line in path.read_text().splitlines()] for _, path in runs]
    for whole, parts in zip(*logs, strict=True):
        for key in (k for k in whole if k.startswith("loss/")):
            assert parts[key] == pytest.approx(whole[key], rel=1e-3)


def test_no_pass_more_than_the_algorithm_needs(bench):
    # Per image: student 3 (samples) + 3 (regression), teacher 1, fake score 1 + 3.
    assert bench.counted(duration=16) == {"student": 16 * 6, "teacher": 16, "fake_score": 16 * 4}


def test_both_student_batches_share_one_pass(bench):
    trainer, calls = bench.trainer(duration=16), []
    trainer.student.denoiser.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    trainer.train_step()
    assert calls == [32]


def test_student_is_updated_only_when_due_and_samples_carry_no_gradient_otherwise(bench):
    recipe = bench.recipe(fake_updates=3)
    trainer = bench.trainer(recipe)
    for index in range(6):
        start = weights(trainer)
        with trainer.cost.watch(trainer.roles()):
            trainer.train_step()
        changed = {n.split(".")[0] for n, v in weights(trainer).items() if not torch.equal(v, start[n])}
        assert ("student" in changed) == ((index + 1) % 3 == 0)
        assert "fake_score" in changed
    # Four steps with one pass without gradient, two with both batches and gradient.
    assert trainer.cost.counts["student"] == 4 * 16 + 2 * 16 * 6


def test_a_loss_that_is_not_finite_stops_the_run_names_the_term_and_keeps_the_last_good_checkpoint(bench):
    recipe = bench.toy(Toy(lambda i: math.nan if i == 4 else 1.0))
    trainer, outputs = bench.trainer(recipe), bench.outputs()
    with pytest.raises(DistillkitError, match=r"loss/toy is not finite near step 5.*checkpoints"):
        trainer.run(outputs)
    checkpoint = outputs.checkpoints.load()
    assert checkpoint.step == 4
    assert all(torch.isfinite(t).all() for group in checkpoint.tensors.values() for t in group.values())


def test_weight_zero_turns_an_objective_off(bench):
    off = Toy(weight=0.0)
    off.name = "off"
    trainer = bench.trainer(bench.toy(Toy(), off))
    trainer.train_step()
    assert off.calls == []


def test_batch_that_processes_cannot_share_is_refused(bench):
    class Three:
        num_processes, process_index, device, mixed_precision = 3, 0, torch.device("cpu"), "no"

    with pytest.raises(UsageError, match=r"--batch 16 .* 3"):
        Trainer(bench.recipe(), bench.teacher, bench.config(), accelerator=Three(), seed=0)


def test_stages_split_the_duration_and_restart_optimisers_and_average(bench):
    begun, seen = [], []

    class Staged(Toy):
        def begin_stage(self, stage, student):
            begun.append((stage.name, trainer.step))

        def __call__(self, step):
            seen.append((step.stage.name, step.progress))
            return super().__call__(step)

    recipe = bench.toy(Staged(), stages=(Stage("long", share=2), Stage("short", share=1)))
    trainer = bench.trainer(recipe)
    optimisers = set()
    for _ in range(6):
        trainer.train_step()
        optimisers.add(trainer._updaters["student"])
    assert begun == [("long", 0), ("short", 4)]
    assert len(optimisers) == 2
    assert seen == [*(("long", k / 4) for k in range(4)), ("short", 0), ("short", 0.5)]


def test_recipe_with_two_parts_of_one_name_is_refused(bench):
    with pytest.raises(ValueError, match="toy"):
        bench.toy(Toy(), Toy())


def test_undeclared_source_is_a_clear_error(bench):
    class Sly(Toy):
        needs = ()

        def __call__(self, step):
            return step.pairs.sample.mean()

    trainer = bench.trainer(bench.toy(Sly()), sources={})
    with pytest.raises(DistillkitError, match=r"sly .*Pairs"):
        trainer.train_step()


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "radam"])
def test_every_optimiser_lowers_the_loss(bench, optimizer):
    trainer = bench.trainer(bench.toy(), optimizer=optimizer, duration=480)
    trainer.run(bench.outputs())
    losses = [json.loads(x)["loss/toy"] for x in (bench.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.9 * losses[0]


def test_learning_rate_schedule():
    config = TrainingConfig(warmup=100, lr_schedule="cosine")
    factors = [learning_rate_factor(config, images, 1000) for images in (0, 50, 100, 500, 1000)]
    assert factors == pytest.approx([0, 0.5 * (0.5 - 0.5 * math.cos(math.pi * 0.95)), 0.97553, 0.5, 0], abs=1e-4)
    linear = TrainingConfig(lr_schedule="linear")
    assert learning_rate_factor(linear, 250, 1000) == 0.75
    assert learning_rate_factor(TrainingConfig(), 999, 1000) == 1.0
    falling = TrainingConfig(warmup=50, lr_schedule="inverse-sqrt", lr_decay_from=200)
    factors = [learning_rate_factor(falling, images, 1000) for images in (25, 50, 200, 400, 800)]
    assert factors == pytest.approx([0.5, 1, 1, 0.5**0.5, 0.5])
    # Of another duration, the share.
    shared = TrainingConfig(lr_schedule="inverse-sqrt")
    assert [learning_rate_factor(shared, 400, duration) for duration in (1000, 4000)] == pytest.approx([0.5, 1])


def test_moving_average_halves_its_memory_in_one_half_life():
    source, target = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    average = MovingAverage(source, target, halflife=100, rampup=1.0)
    with torch.no_grad():
        target.weight.fill_(0)
        source.weight.fill_(1)
    for k in range(10):
        average.update(10, 1000 + 10 * k)
    assert target.weight.item() == pytest.approx(0.5)
    average.update(10, 0)  # nothing seen yet: the average is the weights
    assert target.weight.item() == 1.0


def test_health_is_judged_and_written(bench):
    class Sick(Toy):
        diagnostics = (Diagnostic("level", ok=(0, 1), watch=(0, 10), meaning="-"),)

        def __call__(self, step):
            step.log("level", torch.tensor(50.0))
            return super().__call__(step)

    trainer = bench.trainer(bench.toy(Sick()))
    trainer.run(bench.outputs())
    lines = [json.loads(x) for x in (bench.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["health"] == {"level": "collapsed"}
    # Where every network is a copy of the teacher, there is nothing to judge yet.
    assert lines[0]["step"] == 1 and lines[0]["health"] == {}
    diagnostic = Sick.diagnostics[0]
    assert [diagnostic.judge(v) for v in (0.5, 5, 11, math.nan)] == ["ok", "watch", "collapsed", "collapsed"]


def test_a_value_that_goes_in_and_out_of_its_range_is_explained_once(bench):
    class Swinging(Toy):
        diagnostics = (Diagnostic("level", ok=(0, 1), watch=(0, 10), meaning="lower it"),)

        def __call__(self, step):
            step.log("level", torch.tensor([0.5, 0.5, 5.0, 0.5, 6.0, 50.0, 0.5, 60.0, 7.0][step.index % 9]))
            return super().__call__(step)

    trainer = bench.trainer(bench.toy(Swinging()), log_every=1, duration=160)
    outputs = bench.outputs()
    said = []
    outputs.reporter.say = said.append
    trainer.run(outputs)
    about = [line.split(": ", 1)[1] for line in said if "level is" in line]
    assert about == [
        "level is 5, watch (healthy: 0 to 1): lower it", "level is 50, collapsed (healthy: 0 to 1): lower it"
    ]  # fmt: skip


def test_intervals_are_fractions_of_the_duration_or_what_was_asked_for():
    config = TrainingConfig(duration="160k", batch=10, sample_every="500")
    intervals = {kind: config.interval(kind) for kind in INTERVALS}
    assert intervals == {"log": 320, "checkpoint": 1000, "sample": 50, "evaluate": 2000, "snapshot": 500}
    short = TrainingConfig(duration=20, batch=10, log_every=1)
    assert {short.interval(kind) for kind in INTERVALS} == {1}


def test_one_of_several_that_is_out_of_memory_says_which(bench, monkeypatch):
    trainer, outputs = bench.trainer(bench.toy()), bench.outputs()

    def full(self):
        raise MemoryError("cannot allocate 8 GiB")

    monkeypatch.setattr(type(trainer), "train_step", full)
    folder = RunFolder(bench.folder / "run", "distillkit run kd")
    with job_context(device="cpu", quiet=True) as context:
        for world, named in ((1, "out of memory"), (4, "process 0 of 4 (on ")):
            monkeypatch.setattr(type(context), "world", world)
            with pytest.raises(DistillkitError, match=r"at step 1.*What is held") as refused:
                train(trainer, outputs, folder, context, resume=False)
            assert str(refused.value).startswith(named)


def test_a_step_knows_how_many_samples_came_before_it(bench):
    """Of whole batches, however they are divided into passes."""
    seen = []

    class Counting(Toy):
        def __call__(self, step):
            seen.append((step.index, step.before, step.batch, len(step)))
            return super().__call__(step)

    trainer = bench.trainer(bench.toy(Counting()), batch=6, batch_per_device=4)
    for _ in range(3):
        trainer.train_step()
    assert {(index, before, batch) for index, before, batch, _ in seen} == {(0, 0, 6), (1, 6, 6), (2, 12, 6)}
    assert sum(size for *_, size in seen) == 18 and len(seen) > 3
