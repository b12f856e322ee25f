"""EDM2's networks held in parts by two processes, against one with whole ones: the training of a teacher, whose
uncertainty is evaluated apart from the network, and DMD2. A program of tests."""

import sys

from torch.distributed.tensor import DTensor

from distillkit import Method, MethodConfig
from distillkit.jobs.teacher_recipe import teacher_recipe
from distillkit.testing.teachers import TEACHERS
from distillkit_dmd2.method import DMD2
from tests.parallel.small import RANK, compared_on, whole_weights


class TeacherTraining(Method):
    """A teacher's own training."""

    name = "teacher-training"

    class Config(MethodConfig):
        pass

    def recipe(self, teacher, config):
        return teacher_recipe(teacher)


for method, settings in ((TeacherTraining, {}), (DMD2, {"updates": 1, "evaluations": 2})):
    made = compared_on(TEACHERS["magnitude-preserving"], method, settings)
    trained = made.networks.trained
    assert all(denoiser.logvar in list(denoiser.units()) for denoiser in trained.values())
    assert isinstance(trained["student"].logvar.linear.weight, DTensor)
    learnt = [name for role in trained for name, _ in trained[role].named_parameters()]
    assert any("conv_res0.weight" in name for name in learnt)
    for name, weight in whole_weights(made).items():
        # Other than the averages, whose directions alone count, all that was updated is of unit magnitude.
        role = name.partition(".")[0]
        if role in trained and weight.ndim > 1 and "conv_res" in name:
            assert abs(weight.flatten(1).square().mean(1).sqrt() - 1).max() < 1e-3, name
    sys.stdout.write(f"{method.name} ")
    sys.stdout.flush()
sys.stdout.write(f"done:{RANK}\n")
