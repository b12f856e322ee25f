"""What the processes of a test average: gradients that come at different times, or to some processes alone."""

import sys

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.utils.checkpoint import checkpoint

from distillkit import OptimizerConfig
from distillkit.engine.optimization import Updater
from distillkit.errors import DistillkitError
from distillkit.parallel.buckets import Buckets

ACCELERATOR = Accelerator(cpu=True)
RANK, WORLD = ACCELERATOR.process_index, ACCELERATOR.num_processes


class Net(nn.Module):
    """A chain whose second layer some processes leave out, and whose last nobody uses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 1)
        self.unused = nn.Linear(2, 2)

    def forward(self, x, *, second=True):
        x = self.first(x)
        return self.third(self.second(x) if second else x)


class Sends:
    """How many buckets were sent, and how many of them before the backward pass ended."""

    def __init__(self):
        self.count, self.within, self.real = 0, 0, dist.all_reduce
        dist.all_reduce = self

    def __call__(self, *arguments, **named):
        self.count += 1
        self.within += torch._C._current_graph_task_id() >= 0
        return self.real(*arguments, **named)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        dist.all_reduce = self.real


def mean_by_hand(parameters):
    """Over processes of the present gradients, none as zeros; None where nobody has one."""
    means = []
    for parameter in parameters:
        there = torch.tensor(float(parameter.grad is not None))
        total = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        dist.all_reduce(there)
        dist.all_reduce(total)
        means.append(total / WORLD if there else None)
    return means


def same(parameters, means):
    for parameter, mean in zip(parameters, means, strict=True):
        assert (parameter.grad is None) == (mean is None)
        assert mean is None or torch.allclose(parameter.grad, mean, rtol=1e-6, atol=0)


def data(purpose):
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(100 * purpose + RANK))


def grads_that_some_lack(tiny):
    """The first process has no gradient of the second layer, and nobody one of the unused."""
    net, alone = Net(), Net()
    alone(data(1), second=RANK > 0).square().sum().backward()
    means = mean_by_hand(alone.parameters())
    buckets = Buckets(net.parameters(), WORLD, bucket_bytes=tiny)
    for _ in range(2):  # a second update like the first
        net.zero_grad()
        with buckets.passing(last=True):
            net(data(1), second=RANK > 0).square().sum().backward()
        buckets.average()
        same(net.parameters(), means)
    assert net.unused.weight.grad is None and net.second.weight.grad is not None


def only_the_last_pass_sends():
    net, alone = Net(), Net()
    for purpose in (1, 2, 3):
        alone(data(purpose), second=purpose == 1).square().sum().backward()
    means = mean_by_hand(alone.parameters())
    buckets = Buckets(net.parameters(), WORLD, bucket_bytes=64)
    with Sends() as sends:
        for purpose in (1, 2, 3):
            with buckets.passing(last=purpose == 3):
                # The second layer has its gradient from a pass before the last.
                net(data(purpose), second=purpose == 1).square().sum().backward()
            assert sends.count == (len(buckets._buckets) if purpose == 3 else 0)
    buckets.average()
    same(net.parameters(), means)


def buckets_are_sent_while_the_pass_runs():
    net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(6)])
    buckets = Buckets(net.parameters(), WORLD, bucket_bytes=64)
    with Sends() as sends, buckets.passing(last=True):
        net(torch.ones(1, 4)).sum().backward()
    assert sends.count == len(buckets._buckets) >= 6 and sends.within >= 6, (sends.count, sends.within)
    buckets.average()
    buckets.close()
    with Sends() as sends:
        net(torch.ones(1, 4)).sum().backward()
    assert sends.count == 0, "hooks are left behind"


def the_layout_of_a_parameter_is_kept():
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    buckets = Buckets(conv.parameters(), WORLD)
    with buckets.passing(last=True):
        conv(data(1).repeat(1, 16).view(1, 3, 8, 8)).sum().backward()
    buckets.average()
    assert conv.weight.grad.stride() == conv.weight.stride()


def a_gradient_that_comes_twice_is_refused():
    """Two segments of one layer, each of which ends in a backward pass of its own."""
    layer = nn.Linear(3, 3)
    buckets = Buckets(layer.parameters(), WORLD)
    x = data(1).requires_grad_()
    for _ in range(2):
        x = checkpoint(layer, x, use_reentrant=True)
    try:
        with buckets.passing(last=True):
            x.sum().backward()
    except DistillkitError as error:
        assert "use_reentrant=False" in str(error)
    else:
        raise AssertionError("the second gradient is lost without a word")


def an_updater_that_forgets_its_last_pass_is_told():
    updater = Updater([*Net().parameters()], OptimizerConfig(), ACCELERATOR)
    try:
        updater.apply(1.0)
    except DistillkitError as error:
        assert "the last" in str(error)
    else:
        raise AssertionError("gradients of one process were taken for the mean")


def clipped_as_one():
    """Two updates of one optimiser, with clipping, on a part of the batch each, and on the whole."""
    net, whole = Net(), Net()
    parts = Updater([*net.parameters()], OptimizerConfig(lr=0.1, clip_grad_norm=0.5), ACCELERATOR)
    one = torch.optim.AdamW(whole.parameters(), lr=0.1, weight_decay=0.01, fused=True)
    x = torch.randn(4 * WORLD, 3, generator=torch.Generator().manual_seed(5))
    for _ in range(2):
        parts.backward(net(x[4 * RANK : 4 * RANK + 4]).square().mean())
        norm = parts.apply(1.0)
        whole(x).square().mean().backward()
        expected = nn.utils.clip_grad_norm_(whole.parameters(), 0.5)
        one.step()
        one.zero_grad()
        torch.testing.assert_close(norm, expected, rtol=1e-5, atol=0)
    for a, b in zip(net.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


for tiny in (16, 10**6):
    grads_that_some_lack(tiny)
only_the_last_pass_sends()
buckets_are_sent_while_the_pass_runs()
the_layout_of_a_parameter_is_kept()
a_gradient_that_comes_twice_is_refused()
an_updater_that_forgets_its_last_pass_is_told()
clipped_as_one()
sys.stdout.write(f"done:{RANK}\n")
