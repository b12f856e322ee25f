"""Progressive distillation: its stages, on any schedule."""

import pytest
import torch
from pydantic import ValidationError

from distillkit import UsageError, distil
from distillkit.diffusion import EulerSampler, VPSchedule, denoised_from, euler_step
from distillkit.testing.teachers import conditional
from distillkit_progressive.method import Progressive, ProgressiveConfig
from tests.parts.toys import SCHEDULES, step_of, toy_teacher

SMALL = {"device": "cpu", "quiet": True, "batch": 8, "duration": 16, "protocol": "none"}


@pytest.mark.parametrize(
    ("start", "end", "counts"),
    [(4, 1, [4, 2, 1]), (512, 8, [512, 256, 128, 64, 32, 16, 8]), (1, 1, [1]), (6, 3, [6, 3])],
)
def test_steps_are_halved(start, end, counts):
    config = ProgressiveConfig(start_steps=start, end_steps=end)
    assert config.steps() == counts
    stages = Progressive().recipe(toy_teacher(), config).stages
    assert [stage.sampler.steps for stage in stages] == counts
    assert [stage.share for stage in stages] == [1.0] * (len(counts) - 2) + [2.0] * min(2, len(counts))


@pytest.mark.parametrize(("start", "end", "instead"), [(10, 1, 8), (512, 3, 384), (4, 8, 8), (6, 2, 8), (3, 2, 4)])
def test_steps_that_halvings_do_not_lead_to_are_refused(start, end, instead):
    with pytest.raises(
        ValidationError, match=f"start_steps {start} does not come to end_steps {end}.*; {instead} does"
    ):
        ProgressiveConfig(start_steps=start, end_steps=end)
    assert ProgressiveConfig(start_steps=instead, end_steps=end).steps()[-1] == end


def test_a_guided_teacher_is_not_halved_in_the_place_of_another_student(tmp_path):
    """The first stage would lead a student of four steps back to the teacher."""
    teacher = conditional()
    first = distil("kd", teacher, output_dir=tmp_path / "kd", pairs_count=8, pairs_steps=2, **SMALL)
    asked = {"student": str(first.folder), "start_steps": 2, "output_dir": tmp_path / "run", **SMALL}
    with pytest.raises(UsageError, match=r"--student .*halves the guided teacher.*add --guidance 1"):
        distil("progressive", teacher, guidance=2.0, **asked)
    assert not (tmp_path / "run").exists()
    assert distil("progressive", teacher, guidance=1.0, **asked).student.nfe == 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_levels_are_those_of_twice_the_steps(schedule):
    """From pure noise to the least, a flow's to none; what is half-way is where the stage before was trained."""
    schedule, _ = SCHEDULES[schedule]
    coarse, fine = EulerSampler.on_grid(4, schedule), EulerSampler.on_grid(8, schedule)
    assert (coarse.levels[0], coarse.levels[-1]) == (pytest.approx(schedule.t_max), pytest.approx(schedule.t_end))
    spacing = schedule.t_max / 198  # training steps are whole
    assert coarse.refined(schedule).levels == pytest.approx(fine.levels, rel=1e-6, abs=spacing)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_loss_is_zero_where_one_step_lands_with_two_of_the_predecessor(schedule):
    teacher = toy_teacher(schedule)
    recipe = Progressive().recipe(teacher, ProgressiveConfig(start_steps=4))
    [objective], step = recipe.objectives, step_of(recipe, teacher)
    assert objective(step) > 0
    exact = []
    target = objective.target
    objective.target = lambda *a, **how: exact.append(target(*a, **how)) or exact[0]
    objective(step)
    recipe.student.denoiser.forward = lambda x, t, condition: exact[0]
    assert objective(step) == 0


def test_a_stage_begins_with_the_student_of_the_one_before():
    teacher = toy_teacher()
    recipe = Progressive().recipe(teacher, ProgressiveConfig(start_steps=4))
    [objective] = recipe.objectives
    predecessor = objective.modules()["predecessor"]
    with torch.no_grad():
        recipe.student.denoiser.model.last.bias.add_(1)
    assert not torch.equal(predecessor.model.last.bias, recipe.student.denoiser.model.last.bias)
    objective.begin_stage(recipe.stages[1], recipe.student)
    assert torch.equal(predecessor.model.last.bias, recipe.student.denoiser.model.last.bias)


def test_the_teacher_is_guided_in_the_first_stage_alone(monkeypatch):
    """Its student learns the guidance in, and is not guided again."""
    teacher = toy_teacher("vp")
    recipe = Progressive().recipe(teacher, ProgressiveConfig(start_steps=4, guidance=3.0))
    [objective], weights = recipe.objectives, []
    ask = type(teacher).__call__
    monkeypatch.setattr(type(teacher), "__call__", lambda self, *a: weights.append(a[3]) or ask(self, *a))
    for stage, asked in zip(recipe.stages, ([3.0, 3.0], [], []), strict=True):
        weights.clear()
        recipe.student.sampler = stage.sampler
        objective(step_of(recipe, teacher))
        assert weights == asked
    assert recipe.guidance == 3.0

    step, x, schedule = step_of(recipe, teacher), torch.randn(2, 3, 4, 4), teacher.schedule
    t, t_mid, t_end = (torch.full((2,), level) for level in (80.0, 60.0, 40.0))
    condition = step.images.condition.select(slice(0, 2))
    x_mid = euler_step(schedule, x, ask(teacher, x, t, condition, 3.0), t, t_mid)
    x_end = euler_step(schedule, x_mid, ask(teacher, x_mid, t_mid, condition, 3.0), t_mid, t_end)
    found = objective.target(x, t, t_mid, t_end, condition, guided=True)
    torch.testing.assert_close(found, denoised_from(schedule, x, x_end, t, t_end))


def test_steps_from_pure_noise_are_exact_in_float32():
    """At zero terminal SNR sigma / alpha is 1e8, which float32 has seven digits for."""
    schedule = VPSchedule(zero_terminal_snr=True)
    x, denoised = (torch.randn(4, 3, generator=torch.Generator().manual_seed(k)) for k in range(2))
    t, t_next = torch.full((4,), 999.0), torch.full((4,), 500.0)
    landed = euler_step(schedule, x, denoised, t, t_next)
    wide = euler_step(schedule, *(v.double() for v in (x, denoised, t, t_next)))
    torch.testing.assert_close(landed.double(), wide, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(denoised_from(schedule, x, landed, t, t_next), denoised, rtol=1e-5, atol=1e-5)


def test_presets_are_the_authors():
    cifar, imagenet = (Progressive.preset_for(name) for name in ("edm-cifar10-cond", "edm-imagenet64"))
    for preset, batch, stages, duration in ((cifar, 128, 13, 96_000_000), (imagenet, 2048, 10, 1_228_800_000)):
        counts = ProgressiveConfig(**preset.settings).steps()
        # 50,000 iterations a halving, the last two twice as long.
        assert len(counts) == stages and (stages + 2) * 50_000 * batch == duration
        assert preset.training["duration"] == f"{duration / 1e6:g}M"
        assert (preset.training["clip_grad_norm"], preset.training["ema_halflife"]) == (1.0, 0)
