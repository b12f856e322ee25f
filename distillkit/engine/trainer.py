"""The training loop: one for all methods."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.learner import OptimizerConfig
from distillkit.contracts.random import SampleRNG
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.step import ImageSource, PairSource, Step
from distillkit.contracts.teacher import Teacher
from distillkit.engine.checkpoint import Checkpoint, Checkpoints
from distillkit.engine.config import TrainingConfig
from distillkit.engine.cost import CostMeter
from distillkit.engine.losses import constant, loss_of, require_gradient
from distillkit.engine.metrics import Means
from distillkit.engine.optimization import MovingAverage, Updater, learning_rate_factor
from distillkit.engine.outputs import Outputs
from distillkit.engine.preparation import prepare_networks
from distillkit.engine.state import collect, restore
from distillkit.errors import UsageError


class Stopped(Exception):
    """Training ended early on request, after saving."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


class Trainer:
    """Trains a recipe's student and learners.

    A step is one update: its total batch is shared by the processes in contiguous parts, and by micro-batches
    within a process. All random draws are functions of (seed, step, sample index), so a run that is interrupted
    and resumed makes the same numbers as one that is not.

    Args:
        recipe: student, objectives, learners, stages; moved to the device here.
        teacher: gives conditions; also counted as a cost.
        config: the training configuration.
        accelerator: device, processes, precision.
        seed: of all draws.
        pairs, images: sources, where the recipe needs them.
        cost: forward-equivalents spent before (on making pairs).

    Raises:
        UsageError: when the batch cannot be shared evenly by the processes.
    """

    def __init__(
        self,
        recipe: Recipe,
        teacher: Teacher,
        config: TrainingConfig,
        accelerator: Accelerator,
        *,
        seed: int,
        pairs: PairSource | None = None,
        images: ImageSource | None = None,
        cost: CostMeter | None = None,
    ) -> None:
        if config.batch % accelerator.num_processes:
            raise UsageError(f"--batch {config.batch} cannot be shared evenly by {accelerator.num_processes} processes")
        self.recipe, self.teacher, self.config, self.accelerator = recipe, teacher, config, accelerator
        self.rng, self.pairs, self.images = SampleRNG(seed), pairs, images
        self.cost = cost or CostMeter()
        self.step = 0
        device = accelerator.device
        self.student = recipe.student.to(device).eval()
        for part in (*recipe.learners, *(m for objective in recipe.objectives for m in objective.modules().values())):
            part.to(device).eval()
        self.ema = copy.deepcopy(self.student)
        prepare_networks(config, (self.student, *recipe.learners), (self.ema, teacher.denoiser), self.roles().values())
        self.average = MovingAverage(self.student, self.ema, halflife=config.ema_halflife, rampup=config.ema_rampup)
        self.diagnostics = [d for part in recipe.parts for d in part.diagnostics]
        self._learnt = [p for learner in recipe.learners for p in learner.parameters() if p.requires_grad]
        self._means = Means()
        self._bounds = self._stage_bounds()
        self._stage = -1
        self._updaters: dict[str, Updater] = {}

    def run(self, outputs: Outputs, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Train from the present step to the end, writing checkpoints, metrics and previews.

        Raises:
            Stopped: when `should_stop` asked for it; a checkpoint has been written.
            DistillkitError: when a loss is no longer finite; the last good checkpoint stays.
        """
        config, total = self.config, self.config.steps
        every = {
            name: config.in_steps(getattr(config, f"{name}_every"))
            for name in ("log", "checkpoint", "sample", "evaluate")
        }
        last: dict[str, float] = {}
        if self.step == 0:
            # The engine draws nothing from the global generator, but dropout and plugins may. Checkpoints hold it.
            torch.manual_seed(self.rng.seed + self.accelerator.process_index)
            outputs.preview(self.ema, 0)
        logged_at, logged_step = time.monotonic(), self.step
        with outputs.reporter.task("training", total * config.batch, "images", self.step * config.batch) as task:
            while self.step < total:
                # Previews and evaluations are no cost of the method, so only this is counted.
                with self.cost.watch(self.roles(), self.accelerator.num_processes):
                    self.train_step()
                task.advance(config.batch)
                step, stop = self.step, self._agree(should_stop)
                done = step == total
                saving = done or stop or step % every["checkpoint"] == 0
                if saving or step % every["log"] == 0:
                    now = time.monotonic()
                    speed = (step - logged_step) * config.batch / max(now - logged_at, 1e-9)
                    last |= self._interval(outputs, speed)
                    task.note(outputs.remark(step, last))
                    logged_at, logged_step = now, step
                if not stop and (done or step % every["evaluate"] == 0):
                    last |= outputs.score(step, step * config.batch, self.ema, self.cost.total)
                    task.note(outputs.remark(step, last))
                if not stop and (done or step % every["sample"] == 0):
                    outputs.preview(self.ema, step)
                if saving:
                    self.save(outputs.checkpoints)
                if stop and not done:
                    raise Stopped(step)

    def train_step(self) -> None:
        """One update of the learners and, where it is due, of the student."""
        self._enter_stage(self.step)
        index, recipe = self.step, self.recipe
        due = (index + 1) % recipe.student_every == 0
        learners = [learner for learner in recipe.learners if (index + 1) % learner.every == 0]
        step = None
        for step, share in self._micro_batches(index, due):
            with self.accelerator.autocast():
                if due:
                    with constant(self._learnt):
                        terms = {o.name: loss_of(o, step) * o.weight for o in recipe.objectives if o.weight}
                    for name, term in terms.items():
                        self._means.add(f"loss/{name}", term, share)
                losses = {learner.name: loss_of(learner, step) for learner in learners}
            if due:
                total = require_gradient(
                    sum(terms.values(), start=torch.zeros((), device=step.device)),
                    f"the objectives ({', '.join(terms)})",
                    "the student: compute losses from step.student, step.samples or step.pair_samples, not detached",
                )
                self._updaters["student"].backward(total * share)
            for name, loss in losses.items():
                self._means.add(f"loss/{name}", loss, share)
                require_gradient(loss, f"the loss of the learner {name}", "its own parameters")
                self._updaters[name].backward(loss * share)
            for name, value in step.logged.items():
                self._means.add(name, value, share)
        images, (start, end) = (index + 1) * self.config.batch, self._bounds[self._stage]
        factor = learning_rate_factor(
            self.config, (index - start + 1) * self.config.batch, (end - start) * self.config.batch
        )
        if due:
            self._means.add("grad_norm/student", self._updaters["student"].apply(factor))
            batch = self.config.batch * recipe.student_every
            self.average.update(batch, images - start * self.config.batch)
        for learner in learners:
            self._means.add(f"grad_norm/{learner.name}", self._updaters[learner.name].apply(factor))
        if due and step is not None:
            for objective in recipe.objectives:
                objective.after_step(step)
        self.step += 1

    def _micro_batches(self, index: int, due: bool) -> Iterator[tuple[Step, float]]:
        """This process' part of the total batch in passes of at most `batch_per_device`, with their shares of it."""
        local = self.config.batch // self.accelerator.num_processes
        first = local * self.accelerator.process_index
        passes = -(-local // (self.config.batch_per_device or local))
        cuts = [first + local * k // passes for k in range(passes + 1)]
        for low, high in pairwise(cuts):
            step = Step(
                index=index,
                indices=range(low, high),
                student=self.student,
                draw_condition=self.teacher.draw_condition,
                rng=self.rng,
                device=self.accelerator.device,
                student_due=due,
                needs=self.recipe.needs,
                pairs=self.pairs,
                images=self.images,
            )
            yield step, (high - low) / local

    def _stage_bounds(self) -> list[tuple[int, int]]:
        """First step and end of every stage, by their shares of the duration."""
        shares = [stage.share for stage in self.recipe.stages]
        cuts = [round(self.config.steps * sum(shares[:k]) / sum(shares)) for k in range(len(shares) + 1)]
        return list(pairwise(cuts))

    def _enter_stage(self, step: int, *, resuming: bool = False) -> None:
        """Start the stage that a step belongs to: fresh optimisers, its sampler, its average."""
        stage = next(k for k, (_, end) in enumerate(self._bounds) if step < end or k == len(self._bounds) - 1)
        if stage == self._stage:
            return
        self._stage = stage
        for past in self.recipe.stages[: stage + 1]:
            if past.sampler is not None:
                self.student.sampler = self.ema.sampler = past.sampler
        roles: dict[str, tuple[nn.Module, OptimizerConfig]] = {"student": (self.student, self.config)}
        roles |= {learner.name: (learner, learner.optimizer or self.config) for learner in self.recipe.learners}
        self._updaters = {
            name: Updater(list(module.parameters()), config, self.accelerator)
            for name, (module, config) in roles.items()
        }
        if not resuming:
            for objective in self.recipe.objectives:
                objective.begin_stage(self.recipe.stages[stage], self.student)
            self.average.restart()

    def roles(self) -> dict[str, Any]:
        """The denoisers whose evaluations are the cost of training, by role."""
        roles: dict[str, Any] = {"teacher": self.teacher.denoiser, "student": self.student.denoiser}
        roles |= {learner.name: learner.denoiser for learner in self.recipe.learners if hasattr(learner, "denoiser")}
        # Networks that objectives own (an average, a frozen reference) are a cost like any other.
        return roles | {name: module for name, module in self._owned().items() if isinstance(module, Denoiser)}

    def _agree(self, should_stop: Callable[[], bool]) -> bool:
        """Whether any process was asked to stop. Processes compare notes every ten steps, all at the same one."""
        if self.accelerator.num_processes == 1:
            return should_stop()
        if self.step % 10:
            return False
        asked = torch.tensor(float(should_stop()), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, "sum").item())

    def _interval(self, outputs: Outputs, images_per_second: float) -> dict[str, float]:
        """Close a logging interval: one transfer from the device, then everything that is said about it."""
        values = {**self._means.read(self.accelerator), "images_per_second": images_per_second}
        outputs.record(self.step, self.step * self.config.batch, values, self.cost.total, self.diagnostics)
        return values

    def _modules(self) -> dict[str, nn.Module]:
        """Every network that training changes, by its name in checkpoints."""
        learners = {learner.name: learner for learner in self.recipe.learners}
        return {"student": self.student, "average": self.ema, **learners, **self._owned()}

    def _owned(self) -> dict[str, nn.Module]:
        """Networks that objectives own, by the objective's name and theirs."""
        return {f"{o.name}-{name}": module for o in self.recipe.objectives for name, module in o.modules().items()}

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of every network that training changes."""
        return (p for module in self._modules().values() for p in module.parameters())

    def weight_bytes(self) -> tuple[int, int]:
        """Bytes of all weights that training changes, and of those that have gradients."""
        sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in self.parameters()]
        return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)

    def checkpoint_bytes(self) -> int:
        """About how large a checkpoint is: every weight once, and the trained ones twice more for Adam's moments."""
        sizes = {name: sum(p.numel() * 4 for p in module.parameters()) for name, module in self._modules().items()}
        trained = ["student", *(learner.name for learner in self.recipe.learners)]
        return sum(sizes.values()) + 2 * sum(sizes[name] for name in trained)

    def save(self, checkpoints: Checkpoints) -> None:
        """Write everything that the future depends on; the first process alone writes."""
        if self.accelerator.is_main_process:
            checkpoints.save(self.step, *collect(self._modules(), self._updaters, self.cost))
        self.accelerator.wait_for_everyone()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up training where the checkpoint left it."""
        self.step = checkpoint.step
        # The stage that wrote the checkpoint: at a boundary the next one begins with the next step.
        self._enter_stage(max(self.step - 1, 0), resuming=True)
        restore(checkpoint, self._modules(), self._updaters, self.cost)

    def resume(self, outputs: Outputs) -> None:
        """Take up the newest whole checkpoint of the run, and cut its log back to it.

        Raises:
            DistillkitError: when there are checkpoints and all are damaged.
        """
        if not outputs.checkpoints.folder.is_dir():
            outputs.reporter.say("no checkpoint was written yet: starting at step 0")
            return
        if outputs.main:
            outputs.checkpoints.clean()
        self.restore(outputs.checkpoints.load())
        if outputs.main:
            outputs.metrics.cut_back(self.step)
        outputs.reporter.say(f"resuming at step {self.step:,} of {self.config.steps:,}")
