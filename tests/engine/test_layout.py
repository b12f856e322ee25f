"""The memory layout of feature maps: chosen once a run, kept when it is resumed, without another result."""

import time

import pytest
import torch
from torch import nn

from distillkit.engine import preparation
from distillkit.engine.loop import Stopped
from distillkit.engine.preparation import choose_channels_last, lay_out
from tests.engine.conftest import assert_equal_weights, weights


def choice(bench, **changes):
    said = []
    trainer = bench.trainer(bench.toy(), **changes)
    chosen = choose_channels_last(
        trainer.config, trainer.student, bench.teacher.conditioner, bench.accelerator, said.append
    )
    return chosen, said


def last(network):
    return [p.is_contiguous(memory_format=torch.channels_last) for p in network.parameters() if p.ndim == 4]


def test_what_is_asked_for_is_done_without_a_word(bench, monkeypatch):
    monkeypatch.setattr(preparation, "SMALLEST", 0)
    assert choice(bench, channels_last="on") == (True, [])
    assert choice(bench, channels_last="off") == (False, [])


def test_small_networks_and_other_ranks_are_not_measured(bench, monkeypatch):
    assert choice(bench) == (False, [])
    monkeypatch.setattr(preparation, "SMALLEST", 0)
    trainer = bench.trainer(bench.toy())
    trainer.student.shape = (1, 2, 8, 8)
    assert not choose_channels_last(
        trainer.config, trainer.student, bench.teacher.conditioner, bench.accelerator, print
    )


@pytest.mark.parametrize(("ratio", "chosen"), [(0.5, True), (0.97, False), (1.2, False)])
def test_the_cpu_is_measured_and_one_line_says_what_was_chosen(bench, monkeypatch, ratio, chosen):
    monkeypatch.setattr(preparation, "SMALLEST", 0)
    monkeypatch.setattr(preparation, "_channels_last_time", lambda *a: ratio)
    found, said = choice(bench)
    assert found == chosen and len(said) == 1 and f"{ratio:.2f}" in said[0]


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(preparation, "SMALLEST", 0)
    monkeypatch.setattr(preparation, "_on_gpu", lambda device: True)
    monkeypatch.setattr(preparation, "_clock", lambda device: time.perf_counter())


def test_a_gpu_is_measured_with_the_trainings_own_passes(bench, on_gpu, monkeypatch):
    """Before: channels-last was taken, with which an H100 spent a fifth of DMD's step at ImageNet-64's size on
    copies."""
    trainer, sizes = bench.trainer(bench.toy(), batch_per_device=8), []
    trainer.student.denoiser.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    said = []
    choose_channels_last(trainer.config, trainer.student, bench.teacher.conditioner, bench.accelerator, said.append)
    assert set(sizes) == {1, 8} and sizes.count(8) == 2 * (preparation.ROUNDS + 1) and "times as long" in said[0]
    sizes.clear()
    monkeypatch.setattr(preparation, "LONG_SECONDS", 0.0)
    choose_channels_last(trainer.config, trainer.student, bench.teacher.conditioner, bench.accelerator, print)
    assert sizes.count(8) == 2 * 2


def test_what_is_compiled_for_a_gpu_is_channels_last(bench, on_gpu):
    trainer, said = bench.trainer(bench.toy()), []
    compiled = trainer.config.model_copy(update={"compile": "blocks"})
    assert choose_channels_last(compiled, trainer.student, bench.teacher.conditioner, bench.accelerator, said.append)
    assert "torch.compile" in said[0]


def test_a_measurement_leaves_weights_gradients_and_draws_alone(bench, monkeypatch):
    monkeypatch.setattr(preparation, "SMALLEST", 0)
    monkeypatch.setattr(preparation, "PASS_SECONDS", 0.0)
    trainer = bench.trainer(bench.toy())
    before, draws = weights(trainer), torch.get_rng_state()
    with torch.no_grad():
        trainer.prepare()
    assert trainer.channels_last in (True, False)
    assert_equal_weights(before, weights(trainer))
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(p.grad is None for p in trainer.student.parameters())


def test_a_measurement_makes_no_graphs(bench, monkeypatch):
    """Before: torch.compile made one for each layout and size, which took minutes on a CPU."""

    def graph(*inputs, **others):
        raise AssertionError("a graph is made")

    monkeypatch.setattr(preparation, "SMALLEST", 0)
    monkeypatch.setattr(preparation, "PASS_SECONDS", 0.0)
    trainer = bench.trainer(bench.toy())
    for network in trainer.student.denoiser.children():
        network._compiled_call_impl = graph
    trainer.prepare()
    assert trainer.channels_last in (True, False)


def test_layouts_differ_by_rounding_alone(bench):
    ends = {}
    for layout in ("on", "off"):
        trainer = bench.trainer(channels_last=layout)
        for _ in range(2):
            trainer.train_step()
        ends[layout] = weights(trainer)
        networks = (trainer.student, trainer.ema, trainer.recipe.learners[0], bench.teacher.denoiser)
        assert all(all(last(network)) == (layout == "on") for network in networks)
    for name, value in ends["off"].items():
        torch.testing.assert_close(ends["on"][name], value, rtol=1e-3, atol=2e-4)


def test_a_resumed_run_keeps_the_choice_of_the_first(bench, monkeypatch):
    monkeypatch.setattr(preparation, "SMALLEST", 0)
    monkeypatch.setattr(preparation, "_channels_last_time", lambda *a: 0.5)
    whole = bench.trainer()
    whole.run(bench.outputs("whole"))
    first, outputs = bench.trainer(), bench.outputs("parts")
    with pytest.raises(Stopped):
        first.run(outputs, should_stop=lambda: first.step == 3)
    monkeypatch.setattr(preparation, "_channels_last_time", lambda *a: 2.0)
    second = bench.trainer()
    second.resume(outputs)
    assert second.channels_last and all(last(second.student))
    for parameter in second.student.parameters():
        moment = second._updaters["student"].optimizer.state[parameter]["exp_avg"]
        assert moment.stride() == parameter.stride()
    second.run(outputs)
    assert_equal_weights(weights(whole), weights(second))


def test_weights_of_other_ranks_stay_as_they_are():
    network = nn.Sequential(nn.Conv3d(2, 2, 3), nn.Conv2d(2, 3, 3), nn.Linear(3, 3))
    before = [p.stride() for p in network.parameters()]
    lay_out([network], channels_last=True)
    assert last(network) == [True] and network[1].weight.stride() != before[2]
    lay_out([network], channels_last=False)
    assert [p.stride() for p in network.parameters()] == before
