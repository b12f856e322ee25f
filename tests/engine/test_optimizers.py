"""Optimisers by name: moments in 8 bits are saved as they are, and take the memory that the plan says."""

import importlib.util

import pytest
import torch
from torch import nn

from distillkit import OptimizerConfig, UsageError
from distillkit.engine.learning import LearnerTrainer
from distillkit.engine.loop import Stopped
from distillkit.engine.optimization import Updater
from distillkit.engine.optimizers import in_eight_bits, moment_bytes
from distillkit.models.store.folder import fresh_teacher
from distillkit.models.store.resolve import resolve
from distillkit.parts import FakeScore
from distillkit.reading import Unreadable
from tests.conftest import TINY_NETWORK
from tests.engine.conftest import Bench, assert_equal_weights, weights

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
EIGHT = {"optimizer": "adamw8bit", "channels_last": "on"}


@pytest.fixture(autouse=True, scope="module")
def _eager():
    """torchao compiles the update of every shape, which takes seconds each; its operations are the same without."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(scope="module")
def bench(tiny_teacher_folder, tmp_path_factory):
    """As the engine's, of a network that has parameters which are large enough for 8 bits."""
    kind, arguments = TINY_NETWORK["kind"], TINY_NETWORK["arguments"]
    network = {"kind": kind, "arguments": {**arguments, "network": {**arguments["network"], "model_channels": 32}}}
    spec = resolve(str(tiny_teacher_folder)).spec.model_copy(update={"network": network})
    return Bench(fresh_teacher(spec, 0), tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def trained(bench):
    """(a whole training, where the checkpoints are of one that was stopped after three of its six steps)."""
    whole, first, outputs = bench.trainer(**EIGHT), bench.trainer(**EIGHT), bench.outputs("parts")
    whole.run(bench.outputs("whole"))
    with pytest.raises(Stopped):
        first.run(outputs, should_stop=lambda: first.step == 3)
    return whole, outputs


def test_a_resumed_training_has_the_same_bits_and_its_files_hold_bytes(bench, trained):
    (whole, outputs), second = trained, bench.trainer(**EIGHT)
    checkpoint = outputs.checkpoints.load(3)
    second.restore(checkpoint)
    saved = checkpoint.tensors["optimizer-student"]
    large = [i for i, p in enumerate(second.student.parameters()) if in_eight_bits(p, "adamw8bit")]
    assert large and all(saved[f"{i}.exp_avg.codes"].dtype is torch.uint8 for i in large)
    assert not any(f"{i}.exp_avg" in saved for i in large)
    second.run(outputs)
    assert_equal_weights(weights(whole), weights(second))
    for role in ("student", "fake_score"):
        ends = [trainer._updaters[role].state()[0] for trainer in (whole, second)]
        assert ends[0].keys() == ends[1].keys() and all(torch.equal(v, ends[1][k]) for k, v in ends[0].items())


def test_8_bits_train_as_32_do_within_their_rounding(bench, trained):
    whole, _ = trained
    exact, start = bench.trainer(channels_last="on"), weights(bench.trainer())
    exact.run(bench.outputs("exact"))
    ends = [weights(trainer) for trainer in (whole, exact)]
    names = [name for name in start if name.startswith("student.") and start[name].numel() >= 4096]
    moved = [torch.cat([(end[n] - start[n]).flatten() for n in names]) for end in ends]
    assert not torch.equal(*moved)
    assert (moved[0] - moved[1]).norm() < 0.2 * moved[1].norm()


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit"])
def test_moments_take_the_bytes_and_the_files_the_shapes_that_are_said(bench, kind):
    trainer = bench.trainer(**{**EIGHT, "optimizer": kind})
    trainer.train_step()
    taken = 0
    for updater in trainer._updaters.values():
        tensors, shapes = updater.state()[0], updater.shapes()
        assert {name: tuple(value.shape) for name, value in tensors.items()} == shapes
        for entry in updater.optimizer.state.values():
            for key in ("exp_avg", "exp_avg_sq"):
                parts = [getattr(entry[key], name) for name in getattr(entry[key], "tensor_attrs", ())]
                taken += sum(part.nbytes for part in (parts or [entry[key]]))
    assert trainer.networks.moment_bytes(trainer.config) == taken
    held, checkpoint = trainer.networks.held(trainer.config), trainer.networks.checkpoint_bytes(trainer.config)
    trained = trainer.networks.weight_bytes()[1]
    assert f"moments {(trained + taken) / 1e6:,.1f} MB" in held
    assert checkpoint == taken + sum(p.nbytes for p in trainer.networks.parameters())


def test_a_learners_own_optimiser_counts_for_its_moments(bench):
    recipe = bench.recipe()
    recipe.learners[0].optimizer = OptimizerConfig(optimizer="adamw8bit")
    networks = bench.trainer(recipe).networks
    expected = sum(
        moment_bytes(parameter, kind)
        for network, kind in ((recipe.student, "adamw"), (recipe.learners[0], "adamw8bit"))
        for parameter in network.parameters()
    )
    assert networks.moment_bytes(bench.config()) == expected


def test_codes_without_their_scales_are_named(bench, trained):
    _, outputs = trained
    checkpoint, trainer = outputs.checkpoints.load(), bench.trainer(**EIGHT)
    saved = checkpoint.held["optimizer-student"]
    gone = next(name for name in saved if name.endswith("scale"))
    del saved[gone]
    with pytest.raises(Unreadable, match=r"exp_avg.*scale"):
        trainer.restore(checkpoint)


@pytest.mark.parametrize(("optimizer", "said"), [("adamw8bit", True), ("adamw", False)])
def test_that_the_first_steps_take_long_is_said(bench, optimizer, said):
    heard = []
    LearnerTrainer(
        FakeScore.from_teacher(bench.teacher), bench.config(optimizer=optimizer), accelerator=bench.accelerator, seed=0,
        sources={}, say=heard.append,
    )  # fmt: skip
    assert any("compile an update for every shape" in line for line in heard) == said


def test_the_rate_changes_from_step_to_step(bench):
    layer = nn.Linear(64, 64, bias=False)
    updater = Updater(list(layer.parameters()), OptimizerConfig(optimizer="adamw8bit", lr=0.1), bench.accelerator)
    moved = []
    for factor in (1.0, 0.5, 0.0):
        before = layer.weight.detach().clone()
        updater.backward(layer.weight.sum())
        updater.apply(factor)
        moved.append((layer.weight.detach() - before).abs().mean().item())
    assert moved[0] == pytest.approx(0.1, rel=0.05) and moved[1] == pytest.approx(0.05, rel=0.1) and moved[2] == 0


def test_a_library_that_is_missing_is_asked_for_before_anything_is_done(bench, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install.*torchao"):
        bench.trainer(optimizer="adamw8bit")
