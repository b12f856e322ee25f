"""Trials of a training, also of methods whose losses differentiate forwards."""

import torch
from accelerate import Accelerator

from distillkit import Objective, Recipe, Samples, StudentGenerator
from distillkit.engine.config import TrainingConfig
from distillkit.jobs.trial import forward_equivalents, try_training
from distillkit.testing.teachers import conditional


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
    assert forward_equivalents(recipe, teacher, accelerator) == {"student": 3}
    trial = try_training(recipe, teacher, TrainingConfig(batch=4), accelerator)
    assert trial.evaluations == {"student": 3}
    assert trial.activation_bytes_per_image > 0 and trial.seconds_per_image > 0
