"""The order of a step: the student's backward pass first, then each learner's; the numbers are those of any order."""

import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from distillkit import Learner, Objective, OptimizerConfig, Samples
from distillkit.engine.losses import constant, loss_of
from distillkit.engine.optimization import merged
from distillkit.engine.passes import Passes
from tests.engine.conftest import Toy, assert_equal_weights, weights


class AllFirst(Passes):
    """All losses, and then all gradients."""

    def __init__(self, recipe, *rest):
        super().__init__(recipe, *rest)
        self.recipe, self.waiting = recipe, []

    def student(self, step, part, updater):
        with constant(self.learnt):
            terms = {o.name: loss_of(o, step) * o.weight for o in self.objectives}
        for name, term in terms.items():
            self.means.add(f"loss/{name}", term, part.share)
        self.waiting.append((sum(terms.values(), start=torch.zeros(())) * part.share, updater))

    def learner(self, learner, step, part, updater):
        loss = loss_of(learner, step)
        self.means.add(f"loss/{learner.name}", loss, part.share)
        self.waiting.append((loss * part.share, updater))
        if learner is self.recipe.learners[-1]:
            for waiting, its in self.waiting:
                its.backward(waiting)
            self.waiting.clear()


@pytest.mark.parametrize("limit", [None, 5])
@pytest.mark.parametrize("settings", [{}, {"fake_updates": 2}])
def test_weights_and_losses_are_bit_for_bit_those_of_computing_all_losses_first(bench, limit, settings):
    ends = []
    for order in (Passes, AllFirst):
        trainer = bench.trainer(bench.recipe(**settings), batch_per_device=limit)
        trainer._passes = order(trainer.recipe, trainer.accelerator, trainer._means)
        for _ in range(4):
            trainer.train_step()
        ends.append((weights(trainer), trainer._means.read(trainer.accelerator)))
    assert_equal_weights(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


class Holder:
    """A tensor that autograd keeps."""

    def __init__(self, tensor):
        self.tensor = tensor


def test_the_students_graph_is_gone_before_a_learners_is_built(bench):
    alive, found = weakref.WeakSet(), []

    class Second(Learner):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def loss(self, step):
            found.append((len(alive), step.samples.requires_grad, step.student_due))
            return (step.samples * self.weight).square().mean()

    def pack(tensor):
        held = Holder(tensor)
        alive.add(held)
        return held

    trainer = bench.trainer(bench.toy(learners=[Second()]), batch_per_device=8)
    trainer.train_step()
    found.clear()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        trainer.train_step()
    assert found == [(0, False, False)] * 2


def test_learners_are_constant_also_where_the_backward_pass_computes_anew(bench):
    states = []

    class Critic(Learner):
        def __init__(self):
            super().__init__()
            self.net = nn.Conv2d(1, 1, 1)

        def forward(self, x):
            states.append(self.net.weight.requires_grad)
            return self.net(x)

        def loss(self, step):
            return self(step.samples).square().mean()

    class Adversary(Objective):
        needs = (Samples,)

        def __init__(self, critic):
            super().__init__()
            self.critic = critic

        def __call__(self, step):
            return checkpoint(self.critic, step.samples, use_reentrant=False).mean()

    critic = Critic()
    trainer = bench.trainer(bench.toy(Adversary(critic), learners=[critic]))
    trainer.train_step()
    assert states == [False, False, True]
    assert all(p.requires_grad for p in critic.parameters())


def test_networks_that_constrain_their_weights_are_called_after_their_own_updates(bench):
    recipe = bench.recipe(fake_updates=2)
    trainer, called = bench.trainer(recipe), []
    for role, denoiser in (("student", trainer.student.denoiser), ("fake", recipe.learners[0].denoiser)):
        denoiser.after_update = lambda role=role: called.append(role)
    for _ in range(4):
        trainer.train_step()
    assert called == ["fake", "student", "fake", "fake", "student", "fake"]


def test_after_update_comes_before_the_average_takes_the_weights_in(bench):
    trainer = bench.trainer(bench.toy(), ema_halflife=0)

    @torch.no_grad()
    def constrain():
        for parameter in trainer.student.parameters():
            parameter.fill_(0.5)

    trainer.student.denoiser.after_update = constrain
    trainer.train_step()
    assert all((p == 0.5).all() for p in trainer.ema.parameters())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "radam"])
def test_a_learners_settings_merge_over_the_runs(bench, optimizer):
    recipe = bench.recipe()
    recipe.learners[0].optimizer = OptimizerConfig(lr=7e-4)
    trainer = bench.trainer(recipe, optimizer=optimizer, beta1=0.5, beta2=0.7, weight_decay=0.25, eps=1e-5, lr=3e-4)
    trainer.train_step()
    student, learner = (trainer._updaters[role].optimizer for role in ("student", "fake_score"))
    assert type(student) is type(learner)
    for group, rate in ((student.param_groups[0], 3e-4), (learner.param_groups[0], 7e-4)):
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (rate, (0.5, 0.7), 1e-5, 0.25)
    assert optimizer != "radam" or student.param_groups[0]["foreach"]


def test_what_was_given_counts_even_where_it_is_the_default(bench):
    run = bench.config(weight_decay=0.3, beta1=0.2)
    assert merged(run, OptimizerConfig(weight_decay=0.01)).weight_decay == 0.01
    assert merged(run, OptimizerConfig()) == merged(run, None) == OptimizerConfig(lr=1e-3, weight_decay=0.3, beta1=0.2)


def test_after_step_follows_the_updates_of_steps_in_which_the_student_was_due(bench):
    seen = []

    class Watching(Toy):
        def after_step(self, step):
            seen.append(step.index)

    trainer = bench.trainer(bench.toy(Watching(), student_every=3))
    for _ in range(6):
        trainer.train_step()
    assert seen == [2, 5]


@pytest.mark.parametrize("half_life", [50, "50%"])
def test_an_average_by_images_is_that_by_the_share_of_the_duration(bench, half_life):
    trainer = bench.trainer(bench.toy(), ema_halflife=half_life, duration=100)
    assert trainer.averages[0].halflife == 50
