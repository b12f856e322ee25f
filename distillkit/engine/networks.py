"""The networks of a training, by the names under which they are checkpointed and counted."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from distillkit.contracts.denoiser import Denoiser, adapted_in, own_parameters
from distillkit.contracts.learner import OptimizerConfig
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher
from distillkit.engine.optimization import merged
from distillkit.engine.optimizers import moment_bytes
from distillkit.errors import UsageError
from distillkit.parallel.strategy import Strategy
from distillkit.weights import weight_bytes


class Held(ABC):
    """What a training holds in memory and in its checkpoints."""

    @property
    @abstractmethod
    def changed(self) -> Mapping[str, nn.Module]:
        """Every network that training changes, by its name in checkpoints."""

    @property
    @abstractmethod
    def optimised(self) -> Mapping[str, OptimizerConfig | None]:
        """Those among them that have an optimiser, with their own settings over the run's."""

    @property
    def frozen(self) -> Mapping[str, int]:
        """Bytes of what is held beside them and never changed, by what it is."""
        return {}

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of every network that training changes."""
        return (p for module in self.changed.values() for p in module.parameters())

    def weight_bytes(self) -> tuple[int, int]:
        """Bytes of all weights that training changes, and of those that have gradients; without what networks have in
        common with the teacher."""
        own = (p for module in self.changed.values() for p in own_parameters(module))
        sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in own]
        return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)

    def moment_bytes(self, config: OptimizerConfig) -> int:
        """Bytes of the optimisers' moments under a run's settings."""
        return sum(
            moment_bytes(parameter, merged(config, own).optimizer)
            for name, own in self.optimised.items()
            for parameter in self.changed[name].parameters()
            if parameter.requires_grad
        )

    def held(self, config: OptimizerConfig) -> str:
        """What holds memory beside a pass, for people: the weights of every network, gradients and moments."""
        sizes = {**self.frozen, **{name: own_bytes(module) for name, module in self.changed.items()}}
        parts = [f"{name} {size / 1e6:,.1f} MB" for name, size in sizes.items() if size]
        _, trained = self.weight_bytes()
        trained += self.moment_bytes(config)
        return f"weights of {', '.join(parts)}; gradients and moments {trained / 1e6:,.1f} MB"

    def checkpoint_bytes(self, config: OptimizerConfig) -> int:
        """About how large a checkpoint is: every weight once, and the optimisers' moments."""
        return sum(own_bytes(module) for module in self.changed.values()) + self.moment_bytes(config)


def own_bytes(module: nn.Module) -> int:
    """Of a network's weights, without those that it has in common with others."""
    if adapted_in(module) is None:
        return weight_bytes(module)
    return sum(p.numel() * p.element_size() for p in own_parameters(module))


def power_name(sigma_rel: float) -> str:
    """Of a power-function average in checkpoints: "average-0.05"."""
    return f"average-{sigma_rel:g}"


class Networks(Held):
    """Student, moving averages, learners, and what objectives own; the teacher beside them.

    Args:
        ema: the student with the moving average of its weights.
        powers: the student with power-function averages of its weights, by their relative widths.
    """

    @classmethod
    def spread(
        cls, recipe: Recipe, teacher: Teacher, strategy: Strategy, *, offload_teacher: bool = False,
        ema_sigmas: Sequence[float] = (),
    ) -> Networks:  # fmt: skip
        """All networks where a strategy has them, one after the other, and the averages of the student's.

        Learners are evaluated in steps alone. What is evaluated elsewhere too, or by a method in full precision (a
        student whose tangent is taken), keeps its own.

        Raises:
            UsageError: where a part of the recipe asks for more than networks in parts can give.
        """
        if strategy.spreads and (asks := next((part for part in recipe.parts if part.whole_networks), None)):
            raise UsageError(f"--parallel {strategy.name}: {asks.whole_networks}; use --parallel replicate")
        recipe.student.eval()
        with strategy.building():
            networks = cls.averaging(recipe, teacher, ema_sigmas)
        learners = {id(learner) for learner in recipe.learners}
        strategy.settle(networks.all)
        for module in networks.all:
            offload = offload_teacher and any(module is denoiser for denoiser in teacher.denoisers)
            strategy.spread(module.eval(), in_steps=id(module) in learners, offload=offload)
        return networks

    @classmethod
    def averaging(cls, recipe: Recipe, teacher: Teacher, ema_sigmas: Sequence[float] = ()) -> Networks:
        """With averages that are copies of the student."""
        ema, *powers = (copy.deepcopy(recipe.student) for _ in range(1 + len(ema_sigmas)))
        return cls(recipe, teacher, ema, dict(zip(ema_sigmas, powers, strict=True)))

    def __init__(
        self, recipe: Recipe, teacher: Teacher, ema: StudentGenerator,
        powers: Mapping[float, StudentGenerator] | None = None,
    ) -> None:  # fmt: skip
        self.recipe, self.teacher, self.ema, self.powers = recipe, teacher, ema, dict(powers or {})

    @property
    def owned(self) -> dict[str, nn.Module]:
        """Networks that objectives own, by the objective's name and theirs."""
        return {f"{o.name}-{name}": module for o in self.recipe.objectives for name, module in o.modules().items()}

    @property
    def changed(self) -> dict[str, nn.Module]:
        learners = {learner.name: learner for learner in self.recipe.learners}
        powers = {power_name(sigma): module for sigma, module in self.powers.items()}
        return {"student": self.recipe.student, "average": self.ema, **powers, **learners, **self.owned}

    @property
    def all(self) -> list[nn.Module]:
        """Every network once, the teacher's and its guide's among them."""
        return list({id(module): module for module in (*self.changed.values(), *self.teacher.denoisers)}.values())

    @property
    def given(self) -> dict[str, Denoiser]:
        """The frozen networks that the training begins with, by role: the teacher's, and that of its guide."""
        return dict(zip(("teacher", "guide"), self.teacher.denoisers, strict=False))

    @property
    def trained(self) -> dict[str, Denoiser]:
        """The student's denoiser and those of learners that have one, by role."""
        trained = {"student": self.recipe.student.denoiser}
        for learner in self.recipe.learners:
            if isinstance(denoiser := getattr(learner, "denoiser", None), Denoiser):
                trained[learner.name] = denoiser
        return trained

    @property
    def counted(self) -> dict[str, Denoiser]:
        """The denoisers whose evaluations are the cost of training, by role."""
        counted = {**self.given, **self.trained}
        # Networks that objectives own (an average, a frozen reference) are a cost like any other.
        return counted | {name: module for name, module in self.owned.items() if isinstance(module, Denoiser)}

    @property
    def optimised(self) -> dict[str, OptimizerConfig | None]:
        return {"student": None, **{learner.name: learner.optimizer for learner in self.recipe.learners}}

    @property
    def frozen(self) -> dict[str, int]:
        weights = {name: weight_bytes(denoiser) for name, denoiser in self.given.items()}
        return {**weights, "the autoencoder": self.teacher.codec.weight_bytes}
