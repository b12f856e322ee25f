"""A method in the engine: a few steps on a small teacher and synthetic data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distillkit.contracts.adapter import AdapterConfig
from distillkit.contracts.method import Method
from distillkit.contracts.teacher import Teacher
from distillkit.engine.checkpoint import Checkpoints
from distillkit.engine.config import TrainingConfig
from distillkit.engine.metrics import MetricsFile
from distillkit.engine.outputs import Outputs
from distillkit.engine.trackers import Trackers
from distillkit.engine.trainer import Trainer
from distillkit.progress import Quiet
from distillkit.testing.setup import BATCH, Settings, recipe_of, synthetic_sources


def trainer_of(
    method: type[Method],
    teacher: Teacher,
    settings: Settings,
    *,
    accelerator: Accelerator | None = None,
    seed: int = 0,
    adapter: AdapterConfig | None = None,
    **changes: Any,
) -> Trainer:
    """A trainer of the method on synthetic data: six steps."""
    values: dict[str, Any] = {
        "batch": BATCH,
        "duration": 6 * BATCH,
        "lr": 1e-3,
        "log_every": BATCH,
        "channels_last": "off",
    }
    values |= {f"{what}_every": 6 * BATCH for what in ("checkpoint", "sample", "evaluate")} | changes
    recipe = recipe_of(method, teacher, settings, seed, adapter)
    return Trainer(
        recipe, teacher, TrainingConfig.model_validate(values), accelerator=accelerator or Accelerator(cpu=True),
        seed=seed, sources=synthetic_sources(teacher, recipe.needs),
    )  # fmt: skip


def outputs_in(folder: Path, accelerator: Accelerator) -> Outputs:
    """Checkpoints and a log in a folder, and no messages."""
    folder.mkdir(parents=True, exist_ok=True)
    return Outputs(
        Checkpoints(folder / "checkpoints"), MetricsFile(folder / "metrics.jsonl"),
        Trackers(), Quiet(),
    )  # fmt: skip


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """A copy of everything that training changes."""
    recipe = trainer.recipe
    modules: dict[str, nn.Module] = {"student": trainer.student, "average": trainer.ema}
    modules |= {learner.name: learner for learner in recipe.learners}
    modules |= {f"{o.name}-{name}": module for o in recipe.objectives for name, module in o.modules().items()}
    return {
        f"{name}.{key}": value.clone() for name, module in modules.items() for key, value in module.state_dict().items()
    }


def different(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> str:
    """Names of the networks that differ; empty if none does."""
    return ", ".join(sorted({name.partition(".")[0] for name in a if not torch.equal(a[name], b[name])}))
