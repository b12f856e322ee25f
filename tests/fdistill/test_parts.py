"""f-distill's weights against their theorem and the authors' code, and the whole objective."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from distillkit import Samples
from distillkit.parts import Critic, FakeScore, LatentDiscriminator, kl_gradient
from distillkit_fdistill.divergences import WEIGHTS
from distillkit_fdistill.method import FDistill, FDistillConfig
from distillkit_fdistill.normalisation import Normalisation
from tests.parts.toys import gradients, step_of, toy_teacher

F = {
    "reverse-kl": lambda r: -r.log(),
    "softened-reverse-kl": lambda r: (r + 1) * ((1 + 1 / r) / 2).log(),
    "jensen-shannon": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    "hellinger": lambda r: 2 * (1 - r.sqrt()).square(),
    "forward-kl": lambda r: r * r.log(),
    "jeffreys": lambda r: (r - 1) * r.log(),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weighted_scores_are_the_gradient_of_the_divergence(name):
    """d/d theta E_q f(p / q) = E_q h(r) (score_q - score_p) dx/d theta, x = theta + z (Xu et al. 2025, Theorem 1)."""
    x = torch.linspace(-12, 12, 20_001, dtype=torch.float64)

    def density(mean, std):
        return (-0.5 * ((x - mean) / std) ** 2).exp() / (std * math.sqrt(2 * math.pi))

    def divergence(mean):
        q, p = density(mean, 1.0), density(0.3, 1.1)
        return torch.trapezoid(q * F[name](p / q), x)

    theta = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    [expected] = torch.autograd.grad(divergence(theta), theta)
    q, p = density(theta.detach(), 1.0), density(0.3, 1.1)
    apart = -(x - theta.detach()) + (x - 0.3) / 1.1**2
    torch.testing.assert_close(torch.trapezoid(q * WEIGHTS[name](p / q) * apart, x), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_and_gradients_are_those_of_the_authors_code(name, golden):
    t = golden("f_distill").tensors
    normalisation = Normalisation(WEIGHTS[name], bins=4, decay=0.0, limits=(0.1, 5.0))
    for _ in range(2):  # means of the batch itself, as theirs: the ratio's, then those of what h gives
        normalisation(t["logits"][:, 0].exp(), t["t"])
        normalisation.update()
    h = normalisation(t["logits"][:, 0].exp(), t["t"])
    torch.testing.assert_close(h, t[f"weights.{name}"], rtol=1e-4, atol=1e-6)
    x = t["x"]
    found = h.reshape(-1, 1, 1, 1) * kl_gradient(x, t["real"], t["fake"]) / x.numel()
    torch.testing.assert_close(found, t[f"grad.{name}"], rtol=1e-4, atol=1e-7)


def test_means_are_of_whole_updates_however_these_are_divided():
    ratio, share = torch.rand(8) * 3 + 0.2, torch.arange(8) / 8
    ends = []
    for cuts in ((0, 8), (0, 3, 8)):
        normalisation = Normalisation(WEIGHTS["forward-kl"], bins=2, decay=0.5, limits=(0.1, 20.0))
        for _ in range(2):
            for low, high in pairwise(cuts):
                normalisation(ratio[low:high], share[low:high])
            normalisation.update()
        ends.append(normalisation.means)
    torch.testing.assert_close(*ends)
    first = (1 + ratio[:4].mean()) / 2  # decay 0.5, from one
    torch.testing.assert_close(ends[0][0], (first + ratio[:4].mean()) / 2)
    assert set(normalisation.state_dict()) == {"means"}, "sums of an update that is not over are not saved"


def test_means_are_of_all_processes(tmp_path, together):
    done = together(Path(__file__).parent / "together.py", tmp_path)
    assert [one.stdout.split() for one in done] == [["done:0"], ["done:1"]], [one.stderr[-3000:] for one in done]


@pytest.mark.parametrize(("features", "kind"), [("fake score", Critic), ("teacher", LatentDiscriminator)])
def test_the_whole_objective(features, kind):
    teacher = toy_teacher("vp")
    config = FDistillConfig(divergence="forward-kl", matching_weight=0.5, gan_features=features, guidance=2.0)
    recipe = FDistill().recipe(teacher, config)
    matching, adversarial = recipe.objectives
    assert isinstance(matching.discriminator, kind) and isinstance(matching.fake, FakeScore)
    assert (matching.weight, adversarial.weight) == (0.5, 1e-3) and matching.needs == (Samples,)
    with torch.no_grad():
        for parameter in (p for learner in recipe.learners for p in learner.parameters()):
            parameter.add_(0.1)
    matching.normalisation.means.copy_(torch.linspace(0.5, 2.0, 11))
    step = step_of(recipe, teacher)
    x, share = step.samples, step.uniform("kl/level")
    t = matching.times[(share * len(matching.times)).long()]
    noise = step.normal("kl/noise")
    noisy = teacher.schedule.add_noise(x, noise, t)
    real, fake = teacher(noisy, t, step.condition, 2.0), matching.fake(noisy, t, step.condition)
    logits = matching.discriminator.head(matching.discriminator.features(x, noise, t, step.condition)).mean(1)
    ratio = logits.exp().clamp(0.1, 20) / torch.linspace(0.5, 2.0, 11)[(share * 10).long()]
    gradient = (ratio / 2.0).reshape(-1, 1, 1, 1) * kl_gradient(x, real, fake)
    loss = matching(step)
    torch.testing.assert_close(loss, 0.5 * gradient.square().mean())
    [found] = torch.autograd.grad(loss, x)
    torch.testing.assert_close(found, gradient.detach() / x.numel())
    weights = ratio.detach()
    share = weights.sum() ** 2 / (len(weights) * weights.square().sum())
    torch.testing.assert_close(step.logged["effective_share"], share.detach())
    assert all(any(g.abs().max() > 0 for g in grads.values()) for grads in gradients(recipe, teacher).values())


def test_the_gan_of_the_student_can_be_left_out():
    recipe = FDistill().recipe(toy_teacher(), FDistillConfig(gan_weight=0))
    assert [o.name for o in recipe.objectives] == ["f_divergence"] and isinstance(recipe.learners[0], Critic)
