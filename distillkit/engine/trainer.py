"""The training of a recipe: one for all methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from accelerate import Accelerator
from torch import nn

from distillkit.contracts.denoiser import Denoiser, adapted_in
from distillkit.contracts.learner import OptimizerConfig
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.source import Batches
from distillkit.contracts.step import Step
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher
from distillkit.engine.config import TrainingConfig
from distillkit.engine.cost import CostMeter
from distillkit.engine.loop import Loop
from distillkit.engine.networks import Networks, power_name
from distillkit.engine.optimization import (
    Average,
    MovingAverage,
    PowerAverage,
    Updater,
    learning_rate_factor,
    merged,
)
from distillkit.engine.outputs import Outputs, Selection
from distillkit.engine.passes import Part, Passes
from distillkit.engine.preparation import choose_channels_last, lay_out, prepare_networks
from distillkit.engine.snapshots import Snapshot
from distillkit.models.guide_cost import guide_cost
from distillkit.parallel.strategy import Strategy


class Trainer(Loop):
    """Trains a recipe's student and learners.

    Args:
        recipe: student, objectives, learners, stages; moved to the device here. Its objectives have been prepared.
        teacher: gives conditions; also counted as a cost.
        config: the training configuration.
        accelerator: device, processes, precision.
        seed: of all draws.
        sources: opened, by the type of their batches.
        cost: forward-equivalents spent before (on making pairs).
        say: hears what was chosen for the user.
        strategy: how networks are spread over processes; whole on each if none.
        networks: of the recipe, where they are spread already.

    Raises:
        UsageError: when the batch cannot be shared evenly by the processes.
    """

    def __init__(
        self,
        recipe: Recipe,
        teacher: Teacher,
        config: TrainingConfig,
        *,
        accelerator: Accelerator,
        seed: int,
        sources: Mapping[type, Batches[Any]] | None = None,
        cost: CostMeter | None = None,
        say: Callable[[str], None] = lambda text: None,
        strategy: Strategy | None = None,
        networks: Networks | None = None,
    ) -> None:
        super().__init__(config, accelerator=accelerator, seed=seed, cost=cost, say=say, strategy=strategy)
        self.recipe, self.teacher, device = recipe, teacher, accelerator.device
        if teacher.guide:
            self.cost.costs["guide"] = guide_cost(teacher)
        self.networks: Networks = networks or Networks.spread(
            recipe, teacher, self.strategy, ema_sigmas=config.ema_sigmas
        )
        self.student = recipe.student
        self.ema: StudentGenerator = self.networks.ema
        prepare_networks(
            config, (self.student, *recipe.learners), (self.ema, *teacher.denoisers), self.roles().values(), say
        )
        self.averages: list[Average] = [MovingAverage.configured(self.student, self.ema, config)]
        for sigma, target in self.networks.powers.items():
            self.averages.append(PowerAverage(self.student, target, sigma_rel=sigma))
        for average in self.averages:
            # They were copied before the student was given another one's weights.
            average.restart()
        self.diagnostics = [d for part in recipe.parts for d in part.diagnostics]
        self._step = partial(
            Step, student=self.student, conditioner=teacher.conditioner, rng=self.rng, device=device,
            needs=recipe.needs, sources=sources or {}, batch=config.batch,
        )  # fmt: skip
        self._passes = Passes(recipe, accelerator, self._means)
        self._bounds = config.divided([stage.share for stage in recipe.stages])
        self._trained = self.networks.trained
        self._stage = -1

    def train_step(self) -> None:
        """One update of the learners and, where it is due, of the student.

        The student's backward pass comes before the learners' losses, and each learner's right after its own: one graph
        is in memory at a time.
        """
        self._enter(self.step)
        index, recipe = self.step, self.recipe
        due = (index + 1) % recipe.student_every == 0
        learners = [learner for learner in recipe.learners if (index + 1) % learner.every == 0]
        step = None
        for step, part in self._micro_batches(index, due):
            if due:
                self._passes.student(step, part, self._updaters["student"])
            for learner in learners:
                self._passes.learner(learner, step, part, self._updaters[learner.name])
            for name, value in step.logged.items():
                self._means.add(name, value, part.share)
        images, (start, end) = (index + 1) * self.config.batch, self._bounds[self._stage]
        factor = learning_rate_factor(
            self.config, (index - start + 1) * self.config.batch, (end - start) * self.config.batch
        )
        if due:
            self._update("student", factor)
            batch = self.config.batch * recipe.student_every
            for average in self.averages:
                average.update(batch, images - start * self.config.batch)
        for learner in learners:
            self._update(learner.name, factor)
        if due and step is not None:
            for objective in recipe.objectives:
                objective.after_step(step)
        self.step += 1

    def _update(self, role: str, factor: float) -> None:
        norm = self._updaters[role].apply(factor)
        if norm is not None:
            self._means.add(f"grad_norm/{role}", norm)
        if role in self._trained and adapted_in(self._trained[role]) is None:
            # Weights on a base stay as they are, and so what they are constrained to.
            self._trained[role].after_update()

    def _micro_batches(self, index: int, due: bool) -> Iterator[tuple[Step, Part]]:
        """The passes of a step on this process, and what each takes of its batch."""
        start, end = self._bounds[self._stage]
        stage, progress = self.recipe.stages[self._stage], min((index - start) / max(end - start, 1), 1.0)
        for part in self._parts():
            step = self._step(index=index, indices=part.indices, student_due=due, stage=stage, progress=progress)
            yield step, part

    def _enter(self, step: int, *, resuming: bool = False) -> None:
        """Start the stage that a step belongs to: fresh optimisers, its sampler, its average."""
        stage = next(k for k, (_, end) in enumerate(self._bounds) if step < end or k == len(self._bounds) - 1)
        if stage == self._stage:
            return
        self.prepare()
        self._stage = stage
        before = self.student.sampler
        for past in self.recipe.stages[: stage + 1]:
            if past.sampler is not None:
                self.student.sampler = self.ema.sampler = past.sampler
        roles: dict[str, tuple[nn.Module, OptimizerConfig]] = {"student": (self.student, self.config)}
        roles |= {learner.name: (learner, merged(self.config, learner.optimizer)) for learner in self.recipe.learners}
        for updater in self._updaters.values():
            updater.close()
        self._updaters = {
            name: Updater(
                [p for p in module.parameters() if p.requires_grad],
                config,
                self.accelerator,
                self.strategy.gradients(module),
            )
            for name, (module, config) in roles.items()
        }
        if not resuming:
            if self.student.sampler != before:
                # Figures of students that are sampled otherwise are not to be compared.
                self._selection = Selection()
            for objective in self.recipe.objectives:
                objective.begin_stage(self.recipe.stages[stage], self.student)
            for average in self.averages:
                average.restart()

    def prepare(self, channels_last: bool | None = None) -> None:
        if self.channels_last is not None:
            return
        if channels_last is None:
            channels_last = not self.strategy.spreads and choose_channels_last(
                self.config, self.student, self.teacher.conditioner, self.accelerator, self.say
            )
        self.channels_last = channels_last
        if not self.strategy.spreads:
            lay_out(self.networks.all, channels_last=channels_last)
        for average in self.averages:
            average.look_anew()

    def roles(self) -> dict[str, Denoiser]:
        return self.networks.counted

    def _described(self, outputs: Outputs) -> dict[str, Any]:
        if outputs.describe_student is None:
            return dict(outputs.described)
        student = outputs.describe_student(self.ema.sampler, self.step * self.config.batch)
        return {**outputs.described, "student": student}

    def _snapshot(self) -> Snapshot | None:
        start = self._bounds[self._stage][0]
        # The averages are of the student's last update, and begin anew with every stage.
        seen = self.step // self.recipe.student_every * self.recipe.student_every - start
        if not self.networks.powers or seen <= 0:
            return None
        batch = self.config.batch
        return Snapshot(
            {power_name(sigma): sigma for sigma in self.networks.powers}, self.step * batch, seen * batch, start * batch
        )
