"""Training runs of a second, in process."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from distillkit import Recipe
from distillkit.data.pairs import PairStore
from distillkit.engine.checkpoint import Checkpoints
from distillkit.engine.config import TrainingConfig
from distillkit.engine.metrics import MetricsFile, Trackers
from distillkit.engine.outputs import Outputs
from distillkit.engine.trainer import Trainer
from distillkit.progress import Quiet
from distillkit_dmd.method import DMD, DMDConfig


class Bench:
    """Makes trainers on the tiny teacher that differ only in what a test asks for."""

    def __init__(self, teacher, folder: Path) -> None:
        self.teacher, self.folder = teacher, folder
        self.accelerator = Accelerator(cpu=True)
        store = PairStore(teacher, steps=3, root=folder / "pairs")
        store.make(64, torch.device("cpu"), advance=lambda n: None)
        self.pairs = store.open(64, torch.device("cpu"))

    def config(self, **changes) -> TrainingConfig:
        return TrainingConfig(**{"duration": 96, "batch": 16, "lr": 1e-3, "log_every": 16, "checkpoint_every": 32,
                                 "sample_every": 96, "evaluate_every": 96, **changes})  # fmt: skip

    def recipe(self, **settings) -> Recipe:
        return DMD().recipe(self.teacher, DMDConfig(**{"distance": "l2", **settings}))

    def trainer(self, recipe: Recipe | None = None, *, seed: int = 0, images=None, **changes) -> Trainer:
        return Trainer(recipe or self.recipe(), self.teacher, self.config(**changes), self.accelerator, seed=seed,
                       pairs=self.pairs, images=images)  # fmt: skip

    def outputs(self, name: str = "run") -> Outputs:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return Outputs(
            Checkpoints(folder / "checkpoints"), MetricsFile(folder / "metrics.jsonl"),
            Trackers(self.accelerator, "none", "test", {}), Quiet(),
        )  # fmt: skip


@pytest.fixture
def bench(tiny_teacher, tmp_path) -> Bench:
    return Bench(copy.deepcopy(tiny_teacher), tmp_path)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """All trained weights of a trainer."""
    modules = {"student": trainer.student, "average": trainer.ema}
    modules |= {learner.name: learner for learner in trainer.recipe.learners}
    return {f"{role}.{k}": v.clone() for role, m in modules.items() for k, v in m.state_dict().items()}


def assert_equal_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different
