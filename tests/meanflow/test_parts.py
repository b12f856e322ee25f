"""MeanFlow's second time, draws, cost and students."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from distillkit import Condition, Denoiser, DistillkitError, Images, build_denoiser
from distillkit.data.images import ImageSource
from distillkit.diffusion import EDMSchedule
from distillkit.students.description import difference
from distillkit.testing.teachers import TEACHERS
from distillkit_meanflow.method import MeanFlow, MeanFlowConfig
from distillkit_meanflow.sampler import MeanFlowSampler
from distillkit_meanflow.two_times import SecondTime, TwoTimes
from tests.engine.conftest import Bench
from tests.parts.toys import step_of, toy_teacher


def made(teacher, **settings):
    return MeanFlow().recipe(teacher, MeanFlowConfig(**settings))


def asked(teacher, size=3):
    torch.manual_seed(0)
    condition = teacher.conditioner.encode(teacher.conditioner.in_turn(range(size)))
    times = torch.tensor(teacher.schedule.levels(2)[1:], dtype=torch.float32).expand(size)
    return torch.randn(size, *teacher.spec.shape), times, condition


@torch.no_grad()
def moved(network):
    for module in network.modules():
        if isinstance(module, SecondTime):
            nn.init.normal_(module.second.weight)
    return network


@pytest.mark.parametrize("kind", TEACHERS)
def test_it_starts_as_the_teacher_and_sees_the_second_time(kind):
    teacher = TEACHERS[kind]()
    x, t, condition = asked(teacher)
    network = TwoTimes(teacher.copy_denoiser())
    denoised = teacher(x, t, condition)
    until = condition.extended(until=torch.tensor([0.0, 0.1, 0.2]))
    assert torch.equal(network(x, t, until), denoised) and torch.equal(network(x, t, condition), denoised)
    moved(network)
    assert not torch.allclose(network(x, t, until), denoised, atol=1e-4)
    # Where a step leads nowhere it is the network of one time, whatever its weights.
    nowhere = condition.extended(until=teacher.schedule.ratio(t))
    torch.testing.assert_close(network(x, t, nowhere), denoised, rtol=1e-4, atol=1e-4)
    anew = build_denoiser(network.description)
    assert not difference(anew, network.state_dict())
    anew.load_state_dict(network.state_dict())
    assert torch.equal(anew(x, t, until), network(x, t, until))


class Nameless(Denoiser):
    def __init__(self):
        super().__init__()
        self.schedule, self.model = EDMSchedule(), nn.Linear(2, 2)

    def forward(self, x, t, condition):
        return self.model(x)


def test_a_network_that_cannot_take_a_second_time_says_so():
    with pytest.raises(DistillkitError, match=r"Linear cannot take a second time: .*time_layers"):
        TwoTimes(Nameless())


def test_a_pass_that_is_computed_anew_on_the_way_back_has_its_own_second_time():
    """Other passes lie between the two."""
    teacher = toy_teacher()
    x, t, condition = asked(teacher)
    until = condition.extended(until=torch.tensor([0.0, 0.1, 0.2]))
    network, found = moved(TwoTimes(teacher.copy_denoiser())), []
    for saved in (False, True):
        network.zero_grad()
        model = network.inner.model
        if saved:
            forward = model.forward
            model.forward = lambda *given, forward=forward: checkpoint(forward, *given, use_reentrant=False)
        loss = network(x, t, until).square().mean()
        with torch.no_grad():
            network(x, t, condition.extended(until=torch.zeros(3)))
        loss.backward()
        found.append([p.grad.clone() for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    copy.deepcopy(network)


def test_both_times_are_drawn_in_order_and_a_share_of_them_apart():
    teacher = toy_teacher("flow")
    recipe = made(teacher, share=0.3, level_std=2.0)
    level, until = recipe.objectives[0].draw(step_of(recipe, teacher, size=1000))
    assert (until <= level.exp()).all() and 0.25 < (until < level.exp()).float().mean() < 0.35
    assert until.min() < level.exp().min(), (
        "r goes on to the clean sample, below the levels that the network is asked at"
    )
    level, until = (
        made(teacher, share=1.0, end_mean=-9.0, end_std=0.5).objectives[0].draw(step_of(recipe, teacher, size=100))
    )
    assert until.max() < 0.005 < level.exp().min()
    level, until = made(teacher, share=0.0).objectives[0].draw(step_of(recipe, teacher))
    assert torch.equal(until, level.exp())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"share": 1.0}, {"student": 5, "teacher": 1}),
        ({"share": 1.0, "tangent": "jvp"}, {"student": 5, "teacher": 1}),
        ({"share": 0.0}, {"student": 3, "teacher": 1}),
        ({"share": 1.0, "teacher_free": True}, {"student": 5}),
    ],
)
def test_cost_counts_the_derivative_where_times_differ_alone(tiny_teacher, tmp_path, settings, expected):
    bench = Bench(tiny_teacher, tmp_path)
    bench.sources[Images] = ImageSource.synthetic(tiny_teacher, torch.device("cpu"))
    assert bench.counted(made(tiny_teacher, **settings)) == {role: 16 * n for role, n in expected.items()}


def test_students_take_any_number_of_steps():
    teacher = toy_teacher("vp")
    recipe = made(teacher, guidance=2.0)
    assert recipe.guidance == 2.0 and made(teacher, teacher_free=True).guidance is None
    sampler = recipe.student.sampler
    assert sampler == MeanFlowSampler(levels=(teacher.schedule.t_max,))
    assert len(sampler.with_nfe(4, recipe.student.denoiser).levels) == 4
    x = torch.randn(2, *teacher.spec.shape)
    assert recipe.student(x, Condition(labels=torch.tensor([0, 1]))).shape == x.shape
