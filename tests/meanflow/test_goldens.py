"""MeanFlow's loss and gradient against the authors' code; see the golden for which."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from distillkit import Condition, Denoiser
from distillkit.diffusion import EDMSchedule, FlowSchedule, VPSchedule, per_sample
from distillkit_meanflow.average_velocity import AverageVelocity
from distillkit_meanflow.sampler import MeanFlowSampler

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens/meanflow.json").read_text())
SCHEDULES = {"flow": FlowSchedule(), "edm": EDMSchedule(), "vp": VPSchedule()}


class Network(Denoiser):
    """u = tanh(z inner + t level + (t - r) until + bias) outer, as X(x, t, until) on any schedule."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule
        for name, value in GOLDEN["network"].items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))

    def forward(self, x, t, condition):
        ratio, until = self.schedule.ratio(t), condition["until"]
        t, r = ratio / (1 + ratio), until / (1 + until)
        z = x * per_sample(1 / (1 + ratio) / self.schedule.alpha(self.schedule.at(ratio)), x)
        hidden = torch.tanh(z @ self.inner + t[:, None] * self.level + (t - r)[:, None] * self.until + self.bias)
        return z - t[:, None] * (hidden @ self.outer)


def velocity(power, constant, how, schedule):
    return AverageVelocity(
        schedule, None, guidance=1.0, times=(0.0, 1.0), ends=None, share=1.0, power=power, constant=constant, how=how,
        source="images",
    )  # fmt: skip


@pytest.mark.parametrize("how", ["jvp", "difference"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_loss_and_gradient(name, schedule, how):
    case, (power, constant) = GOLDEN["cases"][name], map(float, name.split())
    x0, noise, t, r = (torch.tensor(GOLDEN[key], dtype=torch.float64) for key in ("x0", "noise", "t", "r"))
    student = Network(SCHEDULES[schedule])
    objective = velocity(power, constant, how, student.schedule)
    losses, _ = objective.losses(student, x0, noise, t.logit(), r / (1 - r), Condition())
    loss = losses.mean()
    loss.backward()
    tolerance = 1e-7 if how == "jvp" else 0.01
    torch.testing.assert_close(loss.item(), case["loss"], rtol=tolerance, atol=0.0)
    for key, value in case["gradient"].items():
        found, expected = getattr(student, key).grad, torch.tensor(value, dtype=torch.float64)
        assert (found - expected).abs().max() <= tolerance * expected.abs().max(), key


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_steps_follow_the_average_velocity(schedule):
    """z_r = z_t - (t - r) u(z_t, r, t), from one level to the next and to r = 0 (Geng et al. 2025, Eq. 12)."""
    student = Network(SCHEDULES[schedule])
    levels = tuple(student.schedule.levels(3))
    ratios = [*student.schedule.ratio(torch.tensor(levels, dtype=torch.float64)), torch.zeros((), dtype=torch.float64)]
    times = [ratio / (1 + ratio) for ratio in ratios]
    noise = torch.tensor(GOLDEN["noise"], dtype=torch.float64)
    first = torch.tensor(levels[:1], dtype=torch.float64)
    z = student.schedule.start(noise, levels[0]) / student.schedule.alpha(first) * (1 - times[0])
    for t, r in itertools.pairwise(times):
        u = torch.tanh(z @ student.inner + t * student.level + (t - r) * student.until + student.bias) @ student.outer
        z = z - (t - r) * u
    made = MeanFlowSampler(levels=levels)(student, noise, Condition())
    torch.testing.assert_close(made, z, rtol=1e-4, atol=1e-5)
