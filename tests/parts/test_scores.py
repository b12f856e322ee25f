"""Score matching and score differences, in every schedule."""

import pytest
import torch

from distillkit import Condition, Recipe, SampleRNG, StudentGenerator
from distillkit.diffusion import EDMSchedule, FlowSchedule, VPSchedule
from distillkit.parts import (
    DistributionMatching,
    FakeScore,
    denoising_loss,
    kl_gradient,
    lognormal_levels,
    noise_levels,
    own_rate,
)
from tests.parts.toys import SCHEDULES, SHAPES, gradients, step_of, toy_teacher


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kl_gradient_vanishes_where_the_scores_agree(schedule, shape):
    teacher = toy_teacher(schedule, shape)
    fake = FakeScore.from_teacher(teacher)
    objective = DistributionMatching(teacher, fake)
    recipe = Recipe(StudentGenerator.from_teacher(teacher), [objective], [fake])
    assert all((g == 0).all() for g in gradients(recipe, teacher)["student"].values())
    with torch.no_grad():
        fake.denoiser.model.last.bias.add_(0.1)
    assert any(g.abs().max() > 0 for g in gradients(recipe, teacher)["student"].values())


def test_the_kl_gradient_is_scaled_by_every_samples_own_residual():
    x, real, fake = (torch.randn(3, 2, generator=torch.Generator().manual_seed(k)) for k in range(3))
    expected = (fake - real) / (x - real).abs().mean(1, keepdim=True)
    torch.testing.assert_close(kl_gradient(x, real, fake), expected)
    assert (kl_gradient(real, real, real) == 0).all(), "0 / 0 is no gradient"


@pytest.mark.parametrize(("prediction", "schedule"), [("epsilon", "vp"), ("velocity", "flow")])
def test_the_weight_makes_it_the_loss_of_what_the_network_predicts(prediction, schedule):
    """|eps - F|^2 for predicted noise, |n - x0 - F|^2 for a velocity: what each was trained with."""
    teacher = toy_teacher(schedule)
    denoiser, generator = teacher.denoiser, torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(8, 3, 4, 4, generator=generator) for _ in range(2))
    t = teacher.schedule.grid(9)[:-1].float()
    condition = Condition(labels=torch.zeros(8, dtype=torch.int64))
    found = denoising_loss(denoiser, x0, noise, t, condition)
    predicted = denoiser.model(teacher.schedule.add_noise(x0, noise, t), t, condition)
    aim = noise if prediction == "epsilon" else noise - x0
    assert denoiser.prediction == prediction
    torch.testing.assert_close(found, (predicted - aim).square().mean(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("schedule", [EDMSchedule(), VPSchedule(), FlowSchedule()])
def test_levels(schedule):
    times = noise_levels(schedule)
    assert len(times) == 1000 and (times.diff() > 0).all()
    assert times[0].item() == pytest.approx(schedule.t_min) and times[-1].item() == pytest.approx(schedule.t_max)
    uniform = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ratios = schedule.ratio(lognormal_levels(schedule)(uniform)).log()
    assert ratios.median().item() == pytest.approx(-1.2, abs=0.05) and ratios.std().item() == pytest.approx(
        1.2, abs=0.05
    )


def test_the_fake_score_sees_every_level_of_the_grid_with_the_networks_weight():
    teacher = toy_teacher("vp")
    fake = FakeScore.from_teacher(teacher)
    recipe = Recipe(StudentGenerator.from_teacher(teacher), [DistributionMatching(teacher, fake)], [fake])
    step = step_of(recipe, teacher, size=500, due=False)
    t = fake.draw_levels(step, "fake/level")
    assert t.min() < 3 and t.max() > 96 and t.mean().item() == pytest.approx(49.5, abs=5)
    expected = denoising_loss(fake.denoiser, step.samples, step.normal("fake/noise"), t, step.condition)
    assert torch.equal(fake.loss(step), expected)


def test_previews_have_as_much_noise_as_signal(monkeypatch):
    teacher = toy_teacher("flow")
    objective = DistributionMatching(teacher, FakeScore.from_teacher(teacher))
    seen = []
    monkeypatch.setattr(objective, "fake", lambda x, t, condition: seen.append(t) or x)
    shown = objective.previews(torch.zeros(2, 3, 4, 4), Condition(labels=torch.tensor([0, 1])), SampleRNG(0))
    assert list(shown) == ["real score", "fake score"] and seen[0].tolist() == [0.5, 0.5]


def test_an_own_rate_changes_nothing_else():
    assert own_rate(None) is None
    assert own_rate(1e-3).model_fields_set == {"lr"}
