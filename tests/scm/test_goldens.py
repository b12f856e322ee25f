"""sCM's loss and gradient against a reference implementation; see the golden for which."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from distillkit import Condition, StudentGenerator, Teacher, TeacherSpec
from distillkit.diffusion import ConsistencySampler, DenoiserBoundary, EDMPreconditioning
from distillkit_scm.continuous import ContinuousConsistency
from distillkit_scm.tangents import Tangents

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens/scm.json").read_text())


class Network(nn.Module):
    """F(x, c_noise) = tanh(x inner + c_noise level + bias) outer."""

    def __init__(self, weights):
        super().__init__()
        for name, value in weights.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))

    def forward(self, x, level, labels=None, augment=None):
        return torch.tanh(x @ self.inner + level[:, None] * self.level + self.bias) @ self.outer


class Fixed(nn.Module):
    """A weight w_phi with the golden's values."""

    def forward(self, level):
        return torch.tensor(GOLDEN["weight"], dtype=torch.float64)


@pytest.mark.parametrize("how", ["jvp", "difference"])
@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_loss_and_gradient(name, how):
    case = GOLDEN["cases"][name]
    x0, noise, sigma = (torch.tensor(GOLDEN[key], dtype=torch.float64) for key in ("x0", "noise", "sigma"))
    student, taught = (EDMPreconditioning(Network(GOLDEN[key])) for key in ("student", "teacher"))
    teacher = None if name == "teacher-free" else Teacher(taught, TeacherSpec(name="golden", shape=(3,)))
    tangents = Tangents(
        student, teacher, guidance=1.0, mean=0.0, std=1.0, warmup=0.0, constant=0.1, how=how, source="images"
    )
    out, tangent = tangents.at(student, x0, noise, sigma.log(), Condition(), case["warmup"])
    size = tangent.square().mean(1, keepdim=True).sqrt()
    loss = ContinuousConsistency(tangents, Fixed()).losses(sigma.log(), out, tangent / (size + 0.1))
    # The difference has an error of second order in its step.
    tolerance = 1e-7 if how == "jvp" else 0.02
    torch.testing.assert_close(loss.tolist(), case["loss"], rtol=tolerance, atol=0.0)
    loss.mean().backward()
    for key, value in case["gradient"].items():
        found, expected = getattr(student.model, key).grad, torch.tensor(value, dtype=torch.float64)
        assert (found - expected).abs().max() <= tolerance * expected.abs().max(), key
    assert all(p.grad is None for p in taught.parameters())


def test_one_and_two_steps_of_the_sampler():
    """x = cos(t) f(x, t) + sin(t) z between evaluations (Song et al. 2023, Algorithm 1, in TrigFlow's variables)."""
    student = EDMPreconditioning(Network(GOLDEN["student"]))
    noise, fresh = torch.tensor(GOLDEN["x0"]).double(), torch.tensor(GOLDEN["noise"]).double()
    sampler = ConsistencySampler(levels=(80.0, 0.5), boundary=DenoiserBoundary())

    def f(x, t):
        """f(x_t, t) = cos(t) x_t - sin(t) sigma_d F(x_t / sigma_d, t), of the network itself."""
        level = torch.full((len(x),), 0.5 * torch.tan(t).item(), dtype=torch.float64).log() / 4
        return torch.cos(t) * x - torch.sin(t) * 0.5 * -student.model(x / 0.5, level)

    first, second = (torch.atan(torch.tensor(sigma / 0.5, dtype=torch.float64)) for sigma in (80.0, 0.5))
    one = f(torch.sin(first) * 0.5 * noise, first)
    two = f(torch.cos(second) * one + torch.sin(second) * 0.5 * fresh, second)
    for nfe, expected in ((1, one), (2, two)):
        made = StudentGenerator(student, sampler.with_levels((80.0, 0.5)[:nfe]), (3,))
        torch.testing.assert_close(made(noise, Condition(), lambda k: fresh), expected, rtol=1e-6, atol=1e-9)
