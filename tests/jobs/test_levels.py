"""The noise levels of a student, as ratios or as times of the teacher's own schedule."""

import pytest
import torch

from distillkit import UsageError
from distillkit.jobs.recipe import recipe_of
from distillkit.registry import registry
from distillkit.runs.config import resolve
from distillkit.testing.setup import parts_of
from distillkit.testing.teachers import unconditional

DMD2, SID = registry().named("methods")["dmd2"], registry().named("methods")["sid"]


def levels(method, **student):
    config, _ = resolve(method.value, teacher_name="another", options={"student": student})
    return recipe_of(config, method, teacher := unconditional()).final_sampler.times(teacher.schedule)


def test_times_are_those_of_the_schedule():
    """The teacher has a hundred training steps."""
    assert levels(DMD2, times=[99, 74, 49, 24]) == (99, 74, 49, 24)
    assert levels(SID, times="39") == (39,) and levels(DMD2) == (99,)
    schedule = unconditional().schedule
    ratios = schedule.ratio(torch.tensor([99.0, 49.0], dtype=torch.float64)).tolist()
    assert levels(DMD2, levels=ratios) == pytest.approx((99, 49))
    for method, wrong, message in (
        (DMD2, [100.0], "100 is none of .* from 0 to 99"), (DMD2, [10, 20], "descending"), (SID, [9, 8], "one level"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"--student-times.*{message}"):
            levels(method, times=wrong)
    with pytest.raises(UsageError, match="start_ratio and times"):
        levels(SID, times=[9], start_ratio=1.0)


def test_several_steps_simulate_the_students_own_way():
    """Yin et al. 2024, arXiv 2405.14867, section 4.5: the input of an evaluation is the student's own earlier sample
    with fresh noise, and gradients reach the last evaluation alone."""
    parts = parts_of(DMD2.value, unconditional(), {"evaluations": 4, "gan_weight": 0}, apart=True)
    student, schedule, asked = parts.recipe.student, parts.teacher.schedule, []
    assert student.sampler.levels == (99, 74, 49, 24)
    student.denoiser.register_forward_hook(lambda module, given, out: asked.append((*given[:2], out)))
    ends = set()
    for index in range(12):
        asked.clear()
        step = parts.step(index)
        assert step.samples is asked[-1][2]
        ends.add(len(asked))
        for k, (x, t, made) in enumerate(asked):
            assert (t == student.sampler.levels[k]).all() and made.requires_grad == (k == len(asked) - 1)
            if k:
                fresh = step.normal(f"renoise/{k - 1}")
                assert torch.equal(x, schedule.add_noise(asked[k - 1][2], fresh, t)) and not x.requires_grad
        loss = parts.student_loss(step)
        assert loss.isfinite() and loss.requires_grad
    assert ends == {1, 2, 3, 4}
