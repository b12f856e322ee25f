"""A method whose student trains adapters beside the teacher's weights instead of a copy of them."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import torch

from distillkit.contracts.adapter import AdapterConfig
from distillkit.contracts.denoiser import own_parameters
from distillkit.contracts.method import Method
from distillkit.contracts.random import SampleRNG
from distillkit.engine.trainer import Trainer
from distillkit.errors import UsageError
from distillkit.students.artifact import save_student
from distillkit.students.description import describe_student
from distillkit.students.load import load_student
from distillkit.testing.failure import CheckFailure
from distillkit.testing.setup import Settings
from distillkit.testing.teachers import smallest
from distillkit.testing.training import trainer_of

ADAPTER = AdapterConfig(rank=2, alpha=4)


def adapters_can_be_trained(method: type[Method], settings: Settings) -> None:
    """With adapters on the student the weights that it shares with the teacher stay as they are, the adapters move, and
    the student that is saved and loaded makes the same samples.

    Nothing is checked where the student is a network of its own, or where peft is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        return
    teacher = smallest()
    before = {name: value.clone() for name, value in teacher.start.state_dict().items()}
    try:
        trainer = trainer_of(method, teacher, settings, adapter=ADAPTER)
    except UsageError:
        return
    first = [p.detach().clone() for p in own_parameters(trainer.student)]
    for _ in range(max(2, trainer.recipe.student_every)):
        trainer.train_step()
    changed = [name for name, value in teacher.start.state_dict().items() if not torch.equal(value, before[name])]
    if changed:
        raise CheckFailure(
            f"training adapters changed the teacher's {changed[0]}",
            "the teacher, the student and whatever else is made of it share these weights",
            "change weights by their optimiser alone, and copies by load_state_dict or over own_parameters(network)",
        )
    if not any(not torch.equal(p, q) for p, q in zip(own_parameters(trainer.student), first, strict=True)):
        raise CheckFailure(
            "the student's adapters do not move", "the student would never learn", "train step.student.denoiser itself"
        )
    _check_saved(trainer)


def _check_saved(trainer: Trainer) -> None:
    student, teacher = trainer.ema, trainer.teacher
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        described = describe_student(student, teacher, method="checked", method_package="the method under test")
        save_student(Path(folder), student, described)
        loaded = load_student(folder, teacher=teacher)
        rng, conditioner = SampleRNG(0), teacher.conditioner
        noise = rng.normal("sample", 0, range(4), student.shape)
        condition = conditioner.encode(conditioner.in_turn(range(4)))
        mine = student(noise, condition, lambda k: rng.normal(f"renoise/{k}", 0, range(4), student.shape))
        if not torch.equal(loaded.sample(noise, condition), mine):
            raise CheckFailure(
                "a student of adapters makes other samples once it is saved and loaded",
                "its folder is all that is left of a run",
                "keep everything that sampling depends on in the network's weights and in the sampler's fields",
            )
