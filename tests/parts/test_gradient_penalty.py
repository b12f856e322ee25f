"""R1: three ways to the same penalty."""

import pytest
import torch
from torch import nn

from distillkit import Condition
from distillkit.parts import R1, finite_difference_penalty, gradient_penalty


class Judge:
    """Features W (alpha x + sigma n) with alpha = 0.5, and a head with two logits."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.inner = torch.randn(6, 3, generator=generator)
        self.head = nn.ModuleList([nn.Linear(3, 2, bias=False)])
        with torch.no_grad():
            self.head[0].weight.copy_(torch.randn(2, 3, generator=generator))
        self.head.forward = lambda features: self.head[0](features[0])

    def features(self, x, noise, t, condition):
        return [(0.5 * x + t[:, None] * noise) @ self.inner]


def penalty(r1, judge, number=4):
    generator = torch.Generator().manual_seed(1)
    x, noise, nearby = (torch.randn(number, 6, generator=generator) for _ in range(3))
    return r1(judge, x, noise, torch.ones(number), Condition(), lambda: nearby)


def test_the_exact_penalties_of_a_linear_discriminator():
    judge = Judge()
    outer = judge.head[0].weight.mean(0)
    _, inputs = penalty(R1(2.0, "inputs"), judge)
    torch.testing.assert_close(inputs, 2 * (0.5 * judge.inner @ outer).square().sum())
    _, features = penalty(R1(2.0, "features"), judge)
    torch.testing.assert_close(features, 2 * outer.square().sum())


def test_the_finite_difference_is_the_exact_penalty_in_the_mean():
    judge = Judge()
    _, exact = penalty(R1(1.0, "inputs"), judge)
    for spread in (0.01, 0.5):
        _, found = penalty(R1(1.0, "approximate", spread), judge, number=40_000)
        assert found.item() == pytest.approx(exact.item(), rel=0.03)


@pytest.mark.parametrize("kind", ["approximate", "features", "inputs"])
def test_gradients_reach_the_head_and_logits_are_those_without(kind):
    judge = Judge()
    plain, nothing = penalty(R1(), judge)
    logits, found = penalty(R1(1.0, kind), judge)
    assert nothing == 0 and found > 0
    torch.testing.assert_close(logits, plain)
    found.backward()
    assert judge.head[0].weight.grad.abs().max() > 0


def test_the_papers_weight():
    """APT: lambda |D(x) - D(x + s n)|^2 with lambda = 100, s = 0.01 is a weight of 0.01 here."""
    logits, nearby = torch.randn(5, 1), torch.randn(5, 1)
    theirs = 100 * (logits - nearby).square().mean()
    torch.testing.assert_close(0.01 * finite_difference_penalty(logits, nearby, 0.01), theirs)


def test_attention_is_differentiated_twice():
    x = torch.randn(2, 4, 8, requires_grad=True)
    attend = nn.MultiheadAttention(8, 2, batch_first=True)

    class Attending(Judge):
        def features(self, x, noise, t, condition):
            q = attend.in_proj_weight[:8]
            return [nn.functional.scaled_dot_product_attention(x @ q.T, x, x).mean(1)]

    judge = Attending()
    judge.head = nn.ModuleList([nn.Linear(8, 1)])
    judge.head.forward = lambda features: judge.head[0](features[0])
    _, found = R1(1.0, "inputs")(judge, x, x, torch.ones(2), Condition(), lambda: x)
    found.backward()
    assert attend.in_proj_weight.grad.abs().max() > 0


def test_gradients_of_several_points_are_added():
    a, b = torch.ones(3, 2, requires_grad=True), torch.ones(3, 4, requires_grad=True)
    logits = torch.stack([2 * a.sum(1), 4 * b.sum(1)], 1)
    assert gradient_penalty(logits, [a, b]).item() == pytest.approx(2 * 1 + 4 * 4)
