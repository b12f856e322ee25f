"""Trials of a training, also of methods whose losses differentiate forwards."""

import torch
from accelerate import Accelerator
from torch.utils.checkpoint import checkpoint

from distillkit import Objective, Recipe, Samples, Stage, StudentGenerator, load_teacher
from distillkit.engine.config import TrainingConfig
from distillkit.jobs.step_costs import SavedBytes
from distillkit.jobs.trial import forward_equivalents, try_training
from distillkit.testing.teachers import conditional
from distillkit.weights import weight_bytes


class Tangent(Objective):
    """A loss with a Jacobian-vector product, as MeanFlow and sCM have."""

    needs = (Samples,)

    def __call__(self, step):
        denoiser, t = step.student.denoiser, torch.ones(len(step))
        out, tangent = torch.func.jvp(
            lambda x: denoiser(x, t, step.condition), (step.noise,), (torch.ones_like(step.noise),)
        )
        return (out - tangent.detach()).square().mean()


def test_forward_mode_differentiation_is_tried_and_counted():
    accelerator = Accelerator(cpu=True)
    teacher = conditional()
    recipe = Recipe(StudentGenerator.from_teacher(teacher), [Tangent()])
    # Forwards and back, and the derivative along the way.
    assert forward_equivalents(recipe, teacher, accelerator) == {"student": 4}
    trial = try_training(recipe, teacher, TrainingConfig(batch=4), accelerator)
    assert trial.evaluations == {"student": 4}
    assert trial.activation_bytes_per_image > 0 and trial.seconds_per_image > 0


class Anew(Objective):
    """A loss of samples, with activations that are computed anew on the way back."""

    needs = (Samples,)

    def __init__(self, *, anew):
        super().__init__()
        self.anew = anew

    def wide(self, samples):
        return samples.flatten(1)[:, :, None].expand(-1, -1, 5000).sin().cos().sum(-1)

    def __call__(self, step):
        if self.anew:
            return checkpoint(self.wide, step.samples, use_reentrant=False).mean()
        return self.wide(step.samples).mean()


def test_what_is_computed_anew_takes_memory_too():
    """It is kept for no sample of the batch but the one that is computed."""
    teacher, found = conditional(), {}
    for anew in (False, True):
        recipe = Recipe(StudentGenerator.from_teacher(teacher), [Anew(anew=anew)])
        found[anew] = try_training(recipe, teacher, TrainingConfig(batch=4), Accelerator(cpu=True), enough=0.0)
    wide = 64 * 5000 * 4
    assert found[False].activation_bytes_per_image > wide > 2 * found[True].activation_bytes_per_image
    assert 2 * wide < found[True].working_bytes < 6 * wide
    assert found[True].memory(8) - found[True].memory(7) == found[True].activation_bytes_per_image


def test_graphs_that_follow_each_other_are_not_added_up():
    """As the student's, which is gone when a learner's is made."""
    inputs = [torch.ones(count, requires_grad=True) for count in (1000, 3000, 2000)]
    with SavedBytes().counting() as counted:
        for x in inputs:
            x.sin().sum().backward()
    assert (counted.most, counted.alive) == (4 * 3000, 0)
    with SavedBytes(inputs[:1]).counting() as counted:
        sum(x.sin().sum() for x in inputs).backward()
    assert (counted.most, counted.alive) == (4 * 5000, 0)


class Through(Objective):
    """A loss through the frozen teacher."""

    needs = (Samples,)

    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher

    def __call__(self, step):
        return self.teacher.denoiser(step.samples, torch.ones(len(step)), step.condition).square().mean()


def test_the_weights_of_a_teacher_are_no_activations():
    teacher = load_teacher("mixture")
    # A network of 400 kB that keeps a few kB of a point.
    teacher.denoiser = StudentGenerator.from_teacher(teacher).denoiser.requires_grad_(False)
    recipe = Recipe(StudentGenerator.from_teacher(teacher), [Through(teacher)])
    trial = try_training(recipe, teacher, TrainingConfig(batch=4), Accelerator(cpu=True), enough=0.0)
    assert 0 < 10 * trial.activation_bytes_per_image < weight_bytes(teacher.denoiser)


def test_a_codecs_and_a_distances_weights_are_counted(monkeypatch):
    teacher = conditional()
    recipe = Recipe(StudentGenerator.from_teacher(teacher), [Anew(anew=False)])
    bare = try_training(recipe, teacher, TrainingConfig(batch=4), Accelerator(cpu=True), enough=0.0)
    monkeypatch.setattr(type(teacher.codec), "weight_bytes", 1000)
    monkeypatch.setattr(Anew, "frozen_bytes", 100)
    recipe = Recipe(StudentGenerator.from_teacher(teacher), [Anew(anew=False)])
    held = try_training(recipe, teacher, TrainingConfig(batch=4), Accelerator(cpu=True), enough=0.0)
    assert held.weight_bytes - bare.weight_bytes == 1100


class Later(Objective):
    """Asks the teacher as many times as the stage has before it."""

    needs = (Samples,)

    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher

    def __call__(self, step):
        t = torch.ones(len(step))
        before = ["training", "first", "second", "third"].index(step.stage.name) - 1
        asked = [self.teacher(step.noise, t, step.condition) for _ in range(max(before, 0))]
        return (step.samples - sum(asked, torch.zeros(()))).square().mean()


def test_stages_count_by_their_shares():
    teacher, accelerator = conditional(), Accelerator(cpu=True)
    stages = [Stage("first", share=1.0), Stage("second", share=2.0), Stage("third", share=5.0)]

    def recipe():
        return Recipe(StudentGenerator.from_teacher(teacher), [Later(teacher)], stages=stages)

    expected = {"student": 3, "teacher": (0 * 1 + 1 * 2 + 2 * 5) / 8}
    assert forward_equivalents(recipe(), teacher, accelerator) == expected
    trial = try_training(recipe(), teacher, TrainingConfig(batch=4), accelerator, enough=0.0)
    assert trial.evaluations == expected
    alone = Recipe(StudentGenerator.from_teacher(teacher), [Later(teacher)])
    first = try_training(alone, teacher, TrainingConfig(batch=4), accelerator, enough=0.0)
    assert trial.flops_per_image == first.flops_per_image * sum(expected.values()) / 3
