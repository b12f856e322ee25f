"""Training runs of a second, in process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from distillkit import Objective, Recipe, Samples, StudentGenerator
from distillkit.contracts.source import Pairs
from distillkit.data.pairs import PairSource
from distillkit.engine.checkpoint import Checkpoints
from distillkit.engine.config import TrainingConfig
from distillkit.engine.metrics import MetricsFile
from distillkit.engine.outputs import Outputs
from distillkit.engine.trackers import Trackers
from distillkit.engine.trainer import Trainer
from distillkit.progress import Quiet
from distillkit_dmd.method import DMD, DMDConfig


class Toy(Objective):
    """Pull samples to zero; can be asked to misbehave."""

    needs = (Samples,)

    def __init__(self, factor: Callable[[int], float] = lambda index: 1.0, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.factor = factor
        self.calls = []

    def __call__(self, step):
        self.calls.append((step.index, step.student_due, list(step.indices)))
        return step.samples.square().mean() * self.factor(step.index)


class Bench:
    """Makes trainers on the tiny teacher that differ only in what a test asks for."""

    def __init__(self, teacher, folder: Path) -> None:
        self.teacher, self.folder = teacher, folder
        self.accelerator = Accelerator(cpu=True)
        self.sources = {Pairs: PairSource.synthetic(teacher, torch.device("cpu"))}

    def config(self, **changes) -> TrainingConfig:
        return TrainingConfig(**{"duration": 96, "batch": 16, "lr": 1e-3, "log_every": 16, "checkpoint_every": 32,
                                 "sample_every": 96, "evaluate_every": 96, **changes})  # fmt: skip

    def recipe(self, **settings) -> Recipe:
        return DMD().recipe(self.teacher, DMDConfig(**{"distance": "l2", **settings}))

    def toy(self, *objectives: Objective, **parts) -> Recipe:
        return Recipe(StudentGenerator.from_teacher(self.teacher), objectives or [Toy()], **parts)

    def counted(self, recipe=None, **changes):
        """Forward-equivalents of one step, by role."""
        trainer = self.trainer(recipe, **changes)
        with trainer.cost.watch(trainer.roles()):
            trainer.train_step()
        return trainer.cost.counts

    def trainer(self, recipe: Recipe | None = None, *, seed: int = 0, sources=None, **changes) -> Trainer:
        return Trainer(recipe or self.recipe(), self.teacher, self.config(**changes), accelerator=self.accelerator,
                       seed=seed, sources=self.sources if sources is None else sources)  # fmt: skip

    def outputs(self, name: str = "run", **parts) -> Outputs:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return Outputs(
            Checkpoints(folder / "checkpoints"), MetricsFile(folder / "metrics.jsonl"),
            Trackers(), Quiet(), **parts,
        )  # fmt: skip


@pytest.fixture
def bench(tiny_teacher, tmp_path) -> Bench:
    return Bench(copy.deepcopy(tiny_teacher), tmp_path)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of all that training changes."""
    return {f"{role}.{k}": v.clone() for role, m in trainer.networks.changed.items() for k, v in m.state_dict().items()}


def assert_equal_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different
