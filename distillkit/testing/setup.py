"""A test stand: a method's recipe on a small teacher, in the engine, one step at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.method import Method
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.step import Step
from distillkit.contracts.teacher import Teacher
from distillkit.engine.checkpoint import Checkpoints
from distillkit.engine.config import TrainingConfig
from distillkit.engine.metrics import MetricsFile, Trackers
from distillkit.engine.outputs import Outputs
from distillkit.engine.trainer import Trainer
from distillkit.progress import Quiet
from distillkit.runs.config import resolve
from distillkit.jobs.trial import MadeUpImages, MadeUpPairs

BATCH = 8


def recipe_of(method: type[Method], teacher: Teacher, seed: int = 0) -> Recipe:
    """The recipe with the settings that fit the embedded digits, so that nothing is downloaded."""
    settings = resolve(method)[0].settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        recipe = method().recipe(teacher, method.Config.model_validate(settings))
    for objective in recipe.objectives:
        objective.prepare()
    return recipe


def trainer_of(
    method: type[Method], teacher: Teacher, *, accelerator: Accelerator | None = None, seed: int = 0, **changes: Any
) -> Trainer:
    """A trainer of the method on made-up pairs and images."""
    config = TrainingConfig(**{"batch": BATCH, "duration": 6 * BATCH, "lr": 1e-3, "log_every": BATCH} | changes)
    cpu = torch.device("cpu")
    return Trainer(
        recipe_of(method, teacher, seed), teacher, config, accelerator or Accelerator(cpu=True), seed=seed,
        pairs=MadeUpPairs(teacher, cpu), images=MadeUpImages(teacher, cpu),
    )  # fmt: skip


def step_of(trainer: Trainer, needs: Sequence[str] | None = None) -> Step:
    """The whole first batch with the student due and every source open, as for parts that declare these needs."""
    trainer._enter_stage(0)
    declared = trainer.recipe.needs if needs is None else frozenset(needs)
    return Step(
        index=0, indices=range(BATCH), student=trainer.student, draw_condition=trainer.teacher.draw_condition,
        rng=trainer.rng, device=torch.device("cpu"), needs=declared, pairs=trainer.pairs,
        images=trainer.images,
    )  # fmt: skip


def outputs_in(folder: Path, accelerator: Accelerator) -> Outputs:
    """Checkpoints and a log in a folder, and nothing said."""
    folder.mkdir(parents=True, exist_ok=True)
    return Outputs(
        Checkpoints(folder / "checkpoints"), MetricsFile(folder / "metrics.jsonl"),
        Trackers(accelerator, "none", "check", {}), Quiet(),
    )  # fmt: skip


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of everything that training changes."""
    return {
        f"{name}.{key}": value.clone()
        for name, module in trainer._modules().items()
        for key, value in module.state_dict().items()
    }


def different(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> str:
    """Names of the networks that differ; empty if none does."""
    names = {name.partition(".")[0] for name in a if not torch.equal(a[name], b[name])}
    return ", ".join(sorted(names))


@contextmanager
def all_evaluations() -> Iterator[dict[str, int]]:
    """Count the samples through every denoiser there is, known to the engine or not."""
    seen = {"samples": 0}
    call = Denoiser.__call__

    def counted(self: Denoiser, x: torch.Tensor, *rest: Any, **named: Any) -> Any:
        seen["samples"] += len(x)
        return call(self, x, *rest, **named)

    Denoiser.__call__ = counted  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        del Denoiser.__call__  # the class's own goes, torch's remains
