"""One graph is in memory at a time: the student's is gone when a learner's is made, and that when the next one's is."""

import pytest
import torch

from benchmarks.live_graphs import CASES, Late
from distillkit.jobs.step_costs import SavedBytes
from distillkit.registry import registry
from distillkit.testing.teachers import conditional
from distillkit.testing.training import trainer_of
from tests.engine.conftest import Toy

METHODS = [
    ("dmd", {}), ("dmd2", {"updates": 1}), ("dmd2", {"updates": 1, "gan_features": "teacher", "r1_weight": 0.1}),
    ("f-distill", {"updates": 1}), ("sid", {}), ("sid", {"fake_guidance": 2.0}), ("sida", {}), ("ladd", {}),
]  # fmt: skip
"""With settings in which the student is due in every step."""


def followed(trainer, monkeypatch):
    """Bytes that graphs hold before and after each pass of the second step, [(pass, before, after)], and the most of
    each pass."""
    passes, found, most = trainer._passes, [], {}
    trainer.train_step()
    with SavedBytes().counting() as counted:

        def watching(name, method):
            def run(*arguments):
                before = counted.alive
                counted.most = before
                method(*arguments)
                key = arguments[0].name if name == "learner" else name
                found.append((key, before, counted.alive))
                most[key] = counted.most

            return run

        for name in ("student", "learner"):
            monkeypatch.setattr(passes, name, watching(name, getattr(passes, name)))
        trainer.train_step()
        assert counted.alive == 0
    return found, most


@pytest.mark.parametrize(("method", "settings"), METHODS)
def test_a_graph_is_gone_when_the_next_is_made(method, settings, monkeypatch):
    trainer = trainer_of(registry().method(method), conditional(), settings, batch=4, batch_per_device=2)
    found, most = followed(trainer, monkeypatch)
    learners = [learner.name for learner in trainer.recipe.learners]
    assert [name for name, _, _ in found] == 2 * ["student", *learners]
    assert [(before, after) for _, before, after in found] == [(0, 0)] * len(found)
    assert min(most.values()) > 1000


class Hoarder(Toy):
    """Keeps a graph of the student's samples that no backward pass goes through."""

    def __call__(self, step):
        self.hoard = step.samples.sin()
        return super().__call__(step)


def test_the_counting_sees_a_graph_that_is_kept(bench, monkeypatch):
    recipe = bench.recipe()
    recipe.objectives = [*recipe.objectives, Hoarder()]
    with pytest.raises(AssertionError):
        followed(bench.trainer(recipe), monkeypatch)
    trainer = bench.trainer()
    trainer.train_step()
    for updater in trainer._updaters.values():
        monkeypatch.setattr(updater, "backward", lambda loss, last=True: loss.backward(retain_graph=True))
    with pytest.raises(AssertionError):
        followed(trainer, monkeypatch)


@pytest.mark.parametrize("method", CASES)
def test_both_graphs_alive_take_more_and_learn_the_same(method):
    ends, most = [], []
    for late in (False, True):
        torch.manual_seed(0)
        trainer = trainer_of(registry().method(method), conditional(), CASES[method], batch=4)
        trainer.train_step()
        if late:
            Late.take_over(trainer)
        with SavedBytes().counting() as counted:
            trainer.train_step()
        most.append(counted.most)
        ends.append([p.detach().clone() for p in trainer.networks.parameters()])
    assert most[1] > 1.2 * most[0]
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
