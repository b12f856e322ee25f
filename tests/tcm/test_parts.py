"""Truncated consistency: its stages, levels and the frozen first model, on any schedule."""

import pytest
import torch

from distillkit import Images, Pairs, Stage, UsageError
from distillkit.data.images import ImageSource
from distillkit.diffusion import EDMSchedule, FlowSchedule, VPSchedule
from distillkit.engine.loop import Stopped
from distillkit.parts import start_time
from distillkit_tcm.levels import TruncatedRange
from distillkit_tcm.method import TCM, TCMConfig
from distillkit_tcm.truncated import FIRST, TRUNCATED
from tests.engine.conftest import Bench, assert_equal_weights, weights
from tests.parts.toys import SCHEDULES, step_of, toy_teacher


def made(teacher, **settings):
    return TCM().recipe(teacher, TCMConfig(**settings))


def truncated(recipe, teacher, **how):
    step = step_of(recipe, teacher, **how)
    step.stage = Stage(TRUNCATED)
    return step


def test_two_stages_or_the_second_alone():
    teacher = toy_teacher()
    assert [(s.name, s.share) for s in made(teacher, first_share=0.25).stages] == [(FIRST, 0.25), (TRUNCATED, 0.75)]
    assert [s.name for s in made(teacher, first_share=0).stages] == [TRUNCATED]
    assert made(teacher, source="pairs").needs == {Pairs} and made(teacher).needs == {Images}
    assert (made(teacher).guidance, made(teacher, teacher_free=False, guidance=3.0).guidance) == (None, 3.0)


def test_the_share_at_the_boundary_is_exact_however_a_batch_is_split():
    levels = TruncatedRange(None, 1.0, 0.25, 0.0, 0.2, 0.01)
    whole = levels.at_boundary(range(64))
    assert whole.sum() == 16
    assert torch.equal(whole, torch.cat([levels.at_boundary(range(20)), levels.at_boundary(range(20, 64))]))


@pytest.mark.parametrize(("share", "batch"), [(0.25, 1), (0.25, 3), (0.3, 7), (0.1, 20)])
def test_batches_that_the_share_does_not_divide_have_their_turn(share, batch):
    """With a quarter of one to three samples there was never any at t'."""
    levels = TruncatedRange(None, 1.0, share, 0.0, 0.2, 0.01)
    found = [levels.at_boundary(range(batch), batch * k).sum().item() for k in range(1000)]
    assert sum(found) == pytest.approx(1000 * batch * share, abs=1)
    assert max(found) - min(found) <= 1


@pytest.mark.parametrize("schedule", [EDMSchedule(), VPSchedule(), FlowSchedule()])
def test_the_second_stage_is_above_the_boundary_with_the_shortest_steps(schedule):
    recipe = made(toy_teacher())
    [objective] = recipe.objectives
    step = truncated(recipe, toy_teacher(), size=400)
    s, s_next = objective.truncated(step, schedule, start_time(schedule))
    assert (s == 1).sum() == 100 and s.min() == 1 and s.max() <= 80.001
    assert (s > 3).double().mean() > 0.1, "the tail of Student's t reaches the noise"
    n = 1 + 8 * torch.sigmoid(-s)
    torch.testing.assert_close(s - s_next, s * n / 2**10)


def test_below_the_boundary_the_frozen_first_model_answers():
    teacher = toy_teacher()
    recipe = made(teacher, first_share=0.0, stages=1)
    [objective], asked = recipe.objectives, {}
    step = truncated(recipe, teacher, size=40)
    s, s_next = objective.truncated(step, teacher.schedule, 80.0)
    for name, network in (("first", objective.first), ("student", recipe.student.denoiser)):
        network.register_forward_hook(lambda net, given, out, name=name: asked.setdefault(name, []).append(given[1]))
    assert objective(step).isfinite()
    below = s_next < 1
    torch.testing.assert_close(asked["first"][0].double(), s_next[below], rtol=1e-6, atol=0)
    torch.testing.assert_close(asked["student"][0].double(), s_next[~below], rtol=1e-6, atol=0)
    assert 0 < below.sum() < 40 and len(asked["student"]) == 2 and torch.equal(asked["student"][1], s.float())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_two_terms_are_means_over_their_own_samples(schedule):
    """L_C + w_b L_B."""
    teacher = toy_teacher(schedule)
    found = [made(teacher, first_share=0.0, boundary_weight=w).objectives[0] for w in (0.0, 0.5)]
    recipe = made(teacher, first_share=0.0)
    step = truncated(recipe, teacher, size=8)
    without, with_boundary = (objective(truncated(recipe, teacher, size=8)).item() for objective in found)
    [objective] = recipe.objectives
    alone = objective.truncated.at_boundary(step.indices)
    weight = objective.terms(step)
    assert weight[alone].mean() * 0.25 == pytest.approx(0.1) and weight[~alone].mean() * 0.75 == pytest.approx(1)
    assert with_boundary > without > 0


def test_a_boundary_outside_of_the_levels_is_refused():
    teacher = toy_teacher()
    recipe = made(teacher, boundary=90.0)
    with pytest.raises(UsageError, match=r"--boundary"):
        recipe.objectives[0](step_of(recipe, teacher))


@pytest.mark.parametrize("stop_at", [2, 3, 4])
def test_the_first_model_is_the_student_at_the_end_of_the_first_stage_also_after_resuming(
    tiny_teacher, tmp_path, stop_at
):
    bench = Bench(tiny_teacher, tmp_path)
    bench.sources[Images] = ImageSource.synthetic(tiny_teacher, torch.device("cpu"))
    whole = bench.trainer(made(tiny_teacher))
    ends = []
    for _ in range(6):
        whole.train_step()
        ends.append({k: v.clone() for k, v in whole.student.denoiser.state_dict().items()})
    frozen = whole.recipe.objectives[0].first.state_dict()
    assert all(torch.equal(frozen[k], v) for k, v in ends[2].items()), "three steps of six are the first stage"
    first, outputs = bench.trainer(made(tiny_teacher)), bench.outputs("parts")
    with pytest.raises(Stopped):
        first.run(outputs, should_stop=lambda: first.step == stop_at)
    second = bench.trainer(made(tiny_teacher))
    second.restore(outputs.checkpoints.load())
    second.run(outputs)
    assert_equal_weights(weights(whole), weights(second))
