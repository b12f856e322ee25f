"""Derivatives along trajectories: exact in forward mode, near by a difference, and without a trace in the training."""

import pytest
import torch
from torch import nn

from distillkit import Condition, Denoiser, UsageError
from distillkit.diffusion import EDMSchedule, VPSchedule
from distillkit.parts import along, level_range
from distillkit.parts.tangents import STEP


class Rounding(torch.autograd.Function):
    """An operation of someone's own without a derivative in forward mode."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class Network(Denoiser):
    def __init__(self, *, own=False):
        super().__init__()
        self.schedule, self.model, self.own = EDMSchedule(), nn.Linear(2, 2), own

    def forward(self, x, t, condition):
        out = self.model(x) * t[:, None].log()
        return Rounding.apply(out) if self.own else out


@pytest.fixture
def at():
    torch.manual_seed(0)
    x, level, slope = torch.randn(5, 2), torch.linspace(-2, 2, 5), torch.randn(5, 2)
    return x, level, slope


def function(network):
    return lambda x, level: network(x.sin(), level.exp(), Condition())


@pytest.mark.parametrize(("how", "tolerance"), [("jvp", 1e-6), ("difference", 2e-3)])
def test_the_derivative_is_that_of_the_moved_point_and_level(at, how, tolerance):
    x, level, slope = at
    network = Network()
    with torch.no_grad():
        weight, value = network.model.weight, network.model(x.sin())
        expected = (slope * x.cos()) @ weight.T * level[:, None] + value
    found = along(function(network), x, level, slope, how, network)
    assert (found - expected).abs().max() < tolerance * expected.abs().max()
    assert not found.requires_grad


@pytest.mark.parametrize("how", ["jvp", "difference"])
def test_half_precision_and_compiled_graphs_stay_out(at, how, monkeypatch):
    network = Network()
    expected = along(function(network), *at, how, network)

    def graph(*args):
        raise AssertionError("the graph of torch.compile was used")

    monkeypatch.setattr(network.model, "_compiled_call_impl", graph)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(along(function(network), *at, how, network), expected)
    assert network.model._compiled_call_impl is graph


def test_a_network_without_forward_mode_is_named_with_the_way_out(at):
    network = Network(own=True)
    with pytest.raises(UsageError, match=r"Network cannot be differentiated in forward mode .*--tangent difference"):
        along(function(network), *at, "jvp", network)
    assert along(function(network), *at, "difference", network).isfinite().all()


def test_memory_that_runs_out_is_no_fault_of_the_network(at):
    def full(x, level):
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        along(full, *at, "jvp", Network())


def test_differences_stay_within_the_schedule():
    for schedule in (EDMSchedule(), VPSchedule(steps=100)):
        low, high = level_range(schedule)
        ends = torch.tensor([low - STEP, high + STEP], dtype=torch.float64).exp()
        expected = schedule.ratio(torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64))
        torch.testing.assert_close(ends, expected)
    assert level_range(EDMSchedule(), 5.0)[1] == pytest.approx(torch.tensor(5.0).log().item() - STEP)
