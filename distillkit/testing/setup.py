"""A method's recipe on a small teacher: its parts asked one by one, on synthetic data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.contracts.adapter import AdapterConfig
from distillkit.contracts.learner import Learner
from distillkit.contracts.method import Method
from distillkit.contracts.objective import Objective
from distillkit.contracts.random import SampleRNG
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.source import Batches, Source, batch_types
from distillkit.contracts.step import Step
from distillkit.contracts.teacher import Teacher
from distillkit.engine.losses import constant, loss_of
from distillkit.jobs.adapters import with_adapters
from distillkit.registry import registry
from distillkit.runs.config import resolve

Settings = Mapping[str, Any]
BATCH, STEPS = 8, 4
CPU = torch.device("cpu")


def settings_of(method: type[Method], settings: Settings) -> dict[str, Any]:
    """All settings of a method: those that fit the default teacher, which needs no download, and `settings` on top."""
    return resolve(method, options={"settings": dict(settings)})[0].settings


def recipe_of(
    method: type[Method], teacher: Teacher, settings: Settings, seed: int = 0, adapter: AdapterConfig | None = None
) -> Recipe:
    """The recipe, its objectives prepared; with adapters on the student, if so asked."""

    def make() -> Recipe:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return method().recipe(teacher, method.Config.model_validate(settings_of(method, settings)))

    recipe = with_adapters(make, teacher, adapter, None, seed)
    for objective in recipe.objectives:
        objective.prepare()
    return recipe


def source_classes(needs: frozenset[type] | None) -> list[type[Source[Any]]]:
    """The sources behind these needs, or all there are; those of plugins included."""
    wanted = None if needs is None else batch_types(needs)
    return [source for kind, source in registry().sources().items() if wanted is None or kind in wanted]


def synthetic_sources(teacher: Teacher, needs: frozenset[type] | None) -> dict[type, Batches[Any]]:
    """The synthetic twins of `source_classes`, opened."""
    return {source.batch_type: source.synthetic(teacher, CPU) for source in source_classes(needs)}


@dataclass
class Parts:
    """A recipe of which a stage, the first by default, has begun, and the steps that its parts see."""

    recipe: Recipe
    teacher: Teacher
    sources: Mapping[type, Batches[Any]]
    rng: SampleRNG
    stage: int = 0

    def begin(self, stage: int) -> None:
        """Begin a stage by its number, as the engine does."""
        self.stage = stage
        for past in self.recipe.stages[: stage + 1]:
            self.recipe.student.sampler = past.sampler or self.recipe.student.sampler
        for objective in self.recipe.objectives:
            objective.begin_stage(self.recipe.stages[stage], self.recipe.student)

    def step(self, index: int = 0, needs: Sequence[type] | None = None) -> Step:
        """A whole batch with the student due, as for parts that declare these needs; in a stage of `STEPS` steps."""
        return Step(
            index=index, indices=range(BATCH), student=self.recipe.student, conditioner=self.teacher.conditioner,
            rng=self.rng, device=CPU, needs=self.recipe.needs if needs is None else frozenset(needs),
            sources=self.sources, stage=self.recipe.stages[self.stage], progress=index % STEPS / STEPS,
        )  # fmt: skip

    def student_loss(self, step: Step, objectives: Sequence[Objective] | None = None) -> Tensor:
        """The weighted sum of objectives, all by default, with gradients kept out of the learners."""
        chosen = self.recipe.objectives if objectives is None else objectives
        with constant([p for learner in self.recipe.learners for p in learner.parameters() if p.requires_grad]):
            return sum((loss_of(o, step) * o.weight for o in chosen), torch.zeros(()))

    @property
    def owned(self) -> dict[str, nn.Module]:
        """Networks that objectives own, by the objective's name and theirs."""
        return {f"{o.name}-{name}": module for o in self.recipe.objectives for name, module in o.modules().items()}

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Everything that training changes."""
        return {
            "student": self.recipe.student, **{learner.name: learner for learner in self.recipe.learners}, **self.owned
        }  # fmt: skip


def parts_of(method: type[Method], teacher: Teacher, settings: Settings, *, apart: bool = False) -> Parts:
    """The recipe's parts at the beginning of its first stage.

    Args:
        apart: move student, learners and targets away from the teacher, each its own way: where training has begun.
    """
    recipe = recipe_of(method, teacher, settings)
    parts = Parts(recipe, teacher, synthetic_sources(teacher, recipe.needs), SampleRNG(0))
    for module in parts.networks.values():
        module.eval()
    parts.begin(0)
    if apart:
        for number, module in enumerate(parts.networks.values()):
            move(module, number)
    return parts


@torch.no_grad()
def move(module: nn.Module, seed: int, scale: float = 0.02) -> None:
    """Noise on all weights."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def has_gradient(part: nn.Module | Objective | Learner) -> bool:
    """Whether any weight has a gradient other than zero."""
    assert isinstance(part, nn.Module)
    return any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in part.parameters())
