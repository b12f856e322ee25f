"""Reflow in the engine: whose samples each stage learns, and what they cost."""

import torch

from distillkit import OneStep, Pairs
from distillkit.data.pairs import PairSource
from distillkit.diffusion import EulerSampler
from distillkit_reflow.method import Reflow, ReflowConfig
from tests.engine.conftest import Bench


def test_every_stage_after_the_first_learns_from_the_student_of_the_one_before(tiny_teacher, tmp_path):
    bench = Bench(tiny_teacher, tmp_path)
    bench.sources[Pairs] = PairSource.synthetic(tiny_teacher, torch.device("cpu"))
    recipe = Reflow().recipe(tiny_teacher, ReflowConfig(rounds=2, steps=3))
    trainer, [objective] = bench.trainer(recipe, duration=96), recipe.objectives  # six steps, two a stage
    students, seen, costs = [objective.predecessor.state_dict()["model.out_conv.weight"].clone()], [], []
    for _ in range(6):
        with trainer.cost.watch(trainer.roles()):
            trainer.train_step()
        costs.append(trainer.cost.total)
        seen.append(objective.predecessor.state_dict()["model.out_conv.weight"].clone())
        students.append(trainer.student.denoiser.state_dict()["model.out_conv.weight"].clone())
    for k in range(6):
        assert torch.equal(seen[k], students[k // 2 * 2]), "frozen at the student that began the stage"
    spent = [after - before for before, after in zip([0, *costs], costs, strict=False)]
    assert spent == [48, 48, 96, 96, 96, 96], "three an image, and the frozen flow's steps from the second stage on"
    assert isinstance(recipe.stages[0].sampler, EulerSampler) and trainer.student.sampler == OneStep()


def test_both_phases_of_the_distillation_learn_from_the_flow_of_the_last_round(tiny_teacher, tmp_path):
    bench = Bench(tiny_teacher, tmp_path)
    bench.sources[Pairs] = PairSource.synthetic(tiny_teacher, torch.device("cpu"))
    recipe = Reflow().recipe(tiny_teacher, ReflowConfig(steps=2, l2_share=0.5, last_share=2.0, distance="l1"))
    assert [(stage.name, stage.share) for stage in recipe.stages] == [
        ("2-rectified flow", 1.0), ("one step, l2", 1.0), ("one step", 1.0)
    ]  # fmt: skip
    trainer, [objective] = bench.trainer(recipe, duration=96), recipe.objectives
    asked, frozen = [], []
    objective.distances = {
        name: lambda a, b, name=name, d=d: asked.append(name) or d(a, b) for name, d in objective.distances.items()
    }
    for _ in range(6):
        trainer.train_step()
        frozen.append(objective.predecessor.state_dict()["model.out_conv.weight"].clone())
    assert asked == ["one step, l2"] * 2 + ["one step"] * 2
    assert torch.equal(frozen[2], frozen[5]) and not torch.equal(frozen[1], frozen[2])
    assert not torch.equal(frozen[5], trainer.student.denoiser.state_dict()["model.out_conv.weight"])
