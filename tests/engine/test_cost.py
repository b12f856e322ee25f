"""The cost of a training in forward-equivalents, passes that end early among them."""

import pytest
import torch
from torch import nn

from distillkit import Condition, Denoiser, StudentGenerator
from distillkit.diffusion import EDMSchedule
from distillkit.engine.cost import CostMeter, partial_share


class Chain(Denoiser):
    """Layers whose operations are easily counted: `first` does a quarter of them."""

    def __init__(self, wide: int = 3) -> None:
        super().__init__()
        self.schedule, self.modes = EDMSchedule(), []
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4 * wide, bias=False)

    def forward(self, x, t, condition):
        self.modes.append(self.training)
        return x + self.second(self.first(x)).unflatten(-1, (-1, 4)).sum(-2)


def inputs(batch=6):
    return torch.randn(batch, 4), torch.ones(batch), Condition(labels=torch.zeros(batch, dtype=torch.int64))


def test_trained_frozen_and_passing_gradients(bench):
    meter, student = CostMeter(), StudentGenerator.from_teacher(bench.teacher)
    x, t, c = torch.randn(4, 1, 8, 8), torch.ones(4), Condition()
    roles = {"teacher": bench.teacher.denoiser, "student": student.denoiser}
    with meter.watch(roles):
        roles["teacher"](x, t, c)
        roles["student"](x, t, c)
        with torch.no_grad():
            roles["student"](x, t, c)
    assert meter.counts == {"teacher": 4, "student": 16}
    with meter.watch(roles, processes=2):
        roles["teacher"](x.requires_grad_(), t, c)
    roles["teacher"](x, t, c)
    assert meter.counts == {"teacher": 4 + 2 * 4 * 2, "student": 16}
    assert meter.total == 36


def test_a_pass_that_ends_at_a_layer_counts_by_its_share_of_operations():
    chain, meter = Chain(), CostMeter()
    with meter.watch({"critic": chain}):
        chain.features(*inputs(), ["first"])
        chain(*inputs())
        with torch.no_grad():
            chain.features(*inputs(), ["first"])
    assert meter.counts == {"critic": 6 * 3 / 4 + 6 * 3 + 6 / 4}


def test_a_share_is_measured_once_and_changes_nothing_of_the_network():
    chain, meter = Chain().train(), CostMeter()
    chain.first.eval()
    before = torch.get_rng_state()
    x, t, c = inputs()
    torch.set_rng_state(before)
    for _ in range(3):
        with meter.watch({"critic": chain}):
            chain.features(x, t, c, ["first"])
    assert chain.modes == [True, False, False, True, True]
    assert chain.training and not chain.first.training and chain.second.training
    assert torch.equal(torch.get_rng_state(), before)


def test_a_resumed_meter_goes_on():
    chain, whole, second = Chain(), CostMeter(), None
    for step in range(4):
        if step == 2:
            second = CostMeter(whole.counts)
        for meter in (whole, second):
            if meter is not None:
                with meter.watch({"critic": chain}):
                    chain.features(*inputs(), ["first"])
    assert second.counts == whole.counts


@pytest.mark.parametrize("failing", ["real inputs alone", "unknown operations"])
def test_what_cannot_be_measured_is_a_whole_pass(failing, monkeypatch):
    chain, meter = Chain(), CostMeter()
    if failing == "unknown operations":
        monkeypatch.setattr(chain, "forward", lambda x, t, c: chain.first.weight.sum() * x + chain.second(x).sum())
        chain.first.forward = lambda x: x
        assert partial_share(chain, ("second",), inputs()) == 1.0
        return
    forward = chain.forward

    def picky(x, t, c):
        if len(x) == 1:
            raise RuntimeError("The tensor has a non-zero number of elements, but its data is not allocated yet")
        return forward(x, t, c)

    monkeypatch.setattr(chain, "forward", picky)
    with meter.watch({"critic": chain}):
        chain.features(*inputs(), ["first"])
    assert meter.counts == {"critic": 18}


def test_forward_mode_differentiation_is_counted_and_survives():
    chain, meter = Chain(), CostMeter()
    x, t, c = inputs()
    with meter.watch({"student": chain}):
        torch.func.jvp(lambda x: chain(x, t, c), (x,), (torch.ones_like(x),))
        torch.func.jvp(lambda x: chain.features(x, t, c, ["first"])[0], (x,), (torch.ones_like(x),))
        with torch.autograd.forward_ad.dual_level():
            chain(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)), t, c)
    # Each counts one pass more than without a direction.
    assert meter.counts["student"] == 24 + 6 + 24
