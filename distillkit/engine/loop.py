"""The training loop, whatever is trained: steps, and what surrounds them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from distillkit.contracts.denoiser import Denoiser, all_uncompiled
from distillkit.contracts.health import Diagnostic
from distillkit.contracts.random import SampleRNG
from distillkit.engine.checkpoint import Checkpoints
from distillkit.engine.config import INTERVALS, Interval, TrainingConfig
from distillkit.engine.cost import CostMeter
from distillkit.engine.interrupt import Agreement
from distillkit.engine.metrics import Means
from distillkit.engine.networks import Held
from distillkit.engine.optimization import Updater
from distillkit.engine.optimizers import EIGHT_BITS, require_optimizer
from distillkit.engine.outputs import Outputs, Selection
from distillkit.engine.passes import Part
from distillkit.engine.precision import require_precision
from distillkit.engine.saved import Checkpoint
from distillkit.engine.snapshots import Snapshot
from distillkit.engine.state import (
    collect,
    generators,
    own_draws,
    progress,
    require_finite,
    restore,
    restore_generators,
)
from distillkit.errors import UsageError
from distillkit.parallel.replicate import Replicate
from distillkit.parallel.strategy import Strategy
from distillkit.students.checkpoints import STATE, read_state

NOTICEABLE = 2.0
"""Seconds of writing a checkpoint, from which on it is said what one takes."""


class Stopped(Exception):
    """Training ended early on request, after saving."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


class Loop(ABC):
    """Steps from the first to the last, with checkpoints, logs, evaluations and previews between them.

    A step is one update: its total batch is shared by the processes in contiguous parts, and by micro-batches
    within a process. All random draws are functions of (seed, step, sample index), so a run that is interrupted
    and resumed makes the same numbers as one that is not. What a step does is its subclass' part.

    Args:
        config: the training configuration.
        accelerator: device, processes, precision.
        seed: of all draws.
        cost: forward-equivalents spent before.
        say: hears what was chosen for the user.
        strategy: how networks are spread over processes; whole on each if none.

    Attributes:
        networks: all that is held and changed; set by the subclass.
        ema: the moving average of what is trained, which is evaluated and shown; set by the subclass.
        diagnostics: judged in every logging interval.

    Raises:
        UsageError: when the batch cannot be shared evenly by the processes, the optimiser is not installed, or the
            accelerator is of another precision.
    """

    networks: Held
    ema: nn.Module
    diagnostics: Sequence[Diagnostic] = ()

    def __init__(
        self,
        config: TrainingConfig,
        *,
        accelerator: Accelerator,
        seed: int,
        cost: CostMeter | None = None,
        say: Callable[[str], None] = lambda text: None,
        strategy: Strategy | None = None,
    ) -> None:
        if config.batch % accelerator.num_processes:
            raise UsageError(f"--batch {config.batch} cannot be shared evenly by {accelerator.num_processes} processes")
        require_optimizer(config)
        require_precision(config.precision, accelerator)
        self.config, self.accelerator, self.say = config, accelerator, say
        self.strategy: Strategy = strategy or Replicate(accelerator.num_processes, accelerator.device)
        self.rng, self.cost, self.step = SampleRNG(seed), cost or CostMeter(), 0
        self.channels_last: bool | None = None
        self._means, self._selection = Means(), Selection()
        # What is due at the present step and follows its checkpoint: it is done on resuming where it was not.
        self._to_evaluate = self._to_preview = False
        self._began, self.seconds_before = time.monotonic(), 0.0
        self._updaters: dict[str, Updater] = {}
        self._said_what_it_takes = False
        if config.optimizer == EIGHT_BITS:
            say(
                "note: --optimizer adamw8bit: the first steps compile an update for every shape of weights, which may "
                "take a minute or more"
            )

    @abstractmethod
    def train_step(self) -> None:
        """One update of all that is due; `step` is one more afterwards."""

    @abstractmethod
    def prepare(self, channels_last: bool | None = None) -> None:
        """Settle the memory layout, once: as given, or as the configuration says."""

    @abstractmethod
    def _enter(self, step: int, *, resuming: bool = False) -> None:
        """Have the optimisers ready that a step needs."""

    def roles(self) -> Mapping[str, Denoiser]:
        """The denoisers whose evaluations are the cost of training, by role."""
        return {}

    def _described(self, outputs: Outputs) -> dict[str, Any]:
        """What checkpoints say of what is trained, beside its state."""
        return {}

    def _snapshot(self) -> Snapshot | None:
        """The averages that stay when the checkpoint of this step is dropped; None where there are none."""
        return None

    @property
    def seconds(self) -> float:
        """Since the trainer was made, and before that: of what prepared it, and of trainings that it goes on from."""
        return self.seconds_before + time.monotonic() - self._began

    @property
    def selection(self) -> dict[str, Any]:
        """{"best_step", "best_value", "evaluated"}: which checkpoint was best, and how many were looked at."""
        return asdict(self._selection)

    def run(self, outputs: Outputs, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Train from the present step to the end, writing checkpoints, metrics and previews.

        Raises:
            Stopped: when `should_stop` asked for it; a checkpoint has been written.
            DistillkitError: when a loss is no longer finite, or a checkpoint cannot be written; the last good one
                stays.
        """
        try:
            self._run(outputs, should_stop)
            outputs.checkpoints.wait()
        except BaseException:
            outputs.checkpoints.settle_down()
            raise

    def _run(self, outputs: Outputs, should_stop: Callable[[], bool]) -> None:
        config, total = self.config, self.config.steps
        last: dict[str, float] = {}
        self.prepare()
        agreed = Agreement(self.accelerator)
        if self.step == 0:
            # The engine draws nothing from the global generator, but dropout and plugins may. Checkpoints hold it.
            torch.manual_seed(self.rng.seed + self.accelerator.process_index)
            self._preview(outputs)
        if self._to_evaluate:
            self._evaluate(outputs)
        if self._to_preview:
            self._preview(outputs)
        logged_at, logged_step = time.monotonic(), self.step
        with outputs.reporter.task("training", total * config.batch, "images", self.step * config.batch) as task:
            while self.step < total:
                # Previews and evaluations are no cost of the method, so only this is counted.
                with self.cost.watch(self.roles(), self.accelerator.num_processes):
                    self.train_step()
                task.advance(config.batch)
                # Nor does it go on when a checkpoint could not be written, which the next one says.
                step, stop = self.step, agreed(lambda: outputs.checkpoints.failed or should_stop())
                due = {kind: self._due(kind) for kind in INTERVALS}
                # The checkpoint is there before the evaluation, which a signal may end.
                self._to_evaluate, self._to_preview = due["evaluate"], due["sample"]
                closing = due["log"] or due["checkpoint"] or due["evaluate"]
                saving = stop or due["checkpoint"] or due["evaluate"] or due["snapshot"]
                # Not because of a signal: a run that was stopped logs what one that was not stopped logs.
                if closing:
                    speed = (step - logged_step) * config.batch / max(time.monotonic() - logged_at, 1e-9)
                    last |= self._interval(outputs, speed)
                if saving:
                    self.save(outputs)
                if stop and step < total:
                    outputs.checkpoints.wait()
                    raise Stopped(step)
                if due["evaluate"] and not stop:
                    self._evaluate(outputs)
                if due["sample"] and not stop:
                    self._preview(outputs)
                if closing:
                    task.note(outputs.remark(step, last))
                    logged_at, logged_step = time.monotonic(), step

    def _due(self, kind: Interval) -> bool:
        """Whether it is to be done at the present step."""
        if kind == "snapshot" and not self.config.ema_sigmas:
            return False
        return self.step == self.config.steps or self.step % self.config.interval(kind) == 0

    def _parts(self) -> Iterator[Part]:
        """This process' part of the total batch in passes of at most `batch_per_device`."""
        local = self.config.batch // self.accelerator.num_processes
        first = local * self.accelerator.process_index
        for low, high in self.config.passes(self.accelerator.num_processes):
            yield Part(range(first + low, first + high), (high - low) / local, last=high == local)

    def _interval(self, outputs: Outputs, images_per_second: float) -> dict[str, float]:
        """Close a logging interval: one transfer from the device, then everything that is said about it."""
        values = {**self._means.read(self.accelerator), "images_per_second": images_per_second}
        if self.accelerator.mixed_precision == "fp16":
            values["skipped_steps"] = float(sum(updater.read_skipped() for updater in self._updaters.values()))
        outputs.record(self.step, self.step * self.config.batch, values, self.cost.total, self.diagnostics)
        return values

    def _evaluate(self, outputs: Outputs) -> None:
        """Measure the moving average; the checkpoint of this step learns of it, and is kept where it is the best."""
        with own_draws(self.accelerator):
            figure = outputs.score(self.step, self.step * self.config.batch, self.ema, self.cost.total)
        self._to_evaluate = False
        best = figure is not None and self._selection.take(self.step, figure.value)
        outputs.checkpoints.wait()
        if outputs.main:
            outputs.checkpoints.update(self.step, {"selection": self.selection, "to_evaluate": False})
            if best:
                outputs.checkpoints.keep_best(self.step)
        self.accelerator.wait_for_everyone()

    def _preview(self, outputs: Outputs) -> None:
        with own_draws(self.accelerator), self.strategy.uneven(), all_uncompiled(self.roles().values()):
            outputs.show(self.step, self.step * self.config.batch, self.ema)

    def save(self, outputs: Outputs) -> None:
        """Begin to write everything that the future depends on; called by all processes.

        Raises:
            DistillkitError: when something is not finite, or the disk refuses it or has refused the one before; older
                checkpoints are untouched.
        """
        checkpoints = outputs.checkpoints
        checkpoints.wait()
        self._say_what_it_takes(outputs)
        tensors, values = collect(self.networks.changed, self._updaters, self.cost)
        require_finite(tensors, self.step, checkpoints.processes)
        tensors["generators"] = generators(self.accelerator)
        if means := self._means.state(self.accelerator):
            tensors["means"] = means
        # A new sampler is described by a sample, which all take part in.
        described = self._described(outputs)
        if outputs.main:
            values |= {"channels_last": self.channels_last, "selection": self.selection, "seconds": self.seconds}
            values |= {"to_evaluate": self._to_evaluate, "to_preview": self._to_preview}
            values["health"] = {name: str(state) for name, state in outputs.health.items()}
            values |= described
        checkpoints.save(self.step, tensors, values, self._snapshot() if self._due("snapshot") else None)

    def _say_what_it_takes(self, outputs: Outputs) -> None:
        """One line on the first checkpoint that took noticeable time."""
        written = outputs.checkpoints.written
        if written is None or self._said_what_it_takes or written.seconds < NOTICEABLE:
            return
        self._said_what_it_takes = True
        outputs.reporter.say(
            f"checkpoints: {written.size / 1e6:,.0f} MB each, written in {written.seconds:.1f} s beside the training, "
            f"which waits {written.held_up:.1f} s"
        )

    def _settle_snapshots(self, checkpoints: Checkpoints) -> None:
        """Drop those of steps that are taken again, and keep that of the present one, which a kill may have
        prevented."""
        checkpoints.snapshots.cut_back(self.step)
        due = self.step and self._due("snapshot") and not checkpoints.snapshots.path(self.step).exists()
        if due and (snapshot := self._snapshot()) is not None:
            checkpoints.keep_snapshot(self.step, snapshot, read_state(checkpoints.path(self.step) / STATE).values)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up training where the checkpoint left it.

        Raises:
            DistillkitError: when it lacks something, or is of another training.
        """
        saved, means = progress(checkpoint), checkpoint.whole("means")
        self.step = checkpoint.step
        self.prepare(saved.channels_last)
        # The step that wrote the checkpoint: at a boundary of stages the next one begins with the next step.
        self._enter(max(self.step - 1, 0), resuming=True)
        self._selection = Selection(**saved.selection.model_dump())
        self._to_evaluate, self._to_preview = saved.to_evaluate, saved.to_preview
        self.seconds_before = saved.seconds
        restore(checkpoint, self.networks.changed, self._updaters, self.cost)
        self._means.load_state(means, self.accelerator, str(checkpoint.folder / "means.safetensors"))
        restore_generators(checkpoint, self.accelerator)

    def resume(self, outputs: Outputs) -> None:
        """Take up the newest whole checkpoint of the run, and cut its log back to it.

        Raises:
            DistillkitError: when there are checkpoints and all are damaged.
        """
        checkpoints = outputs.checkpoints
        if outputs.main:
            checkpoints.clean()
        steps = checkpoints.processes.first(checkpoints.steps)
        if steps:
            checkpoint = checkpoints.load()
            self.restore(checkpoint)
            outputs.health = dict(progress(checkpoint).health)
            outputs.reporter.say(f"resuming at step {self.step:,} of {self.config.steps:,}")
        else:
            outputs.reporter.say("no checkpoint was written yet: starting at step 0")
        if outputs.main:
            if steps:
                checkpoints.settle(self.step)
            self._settle_snapshots(checkpoints)
            # A run that begins again draws its first preview again.
            previewed = self.step > 0 and not self._to_preview
            outputs.metrics.cut_back(self.step, evaluated=not self._to_evaluate, previewed=previewed)
            best = self._selection.best_step
            if best in steps and best != checkpoints.best_step:
                # The run ended between the two.
                checkpoints.keep_best(best)
