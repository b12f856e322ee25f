"""The training of one module alone, by its own loss: parts of a model that are no denoisers, such as an autoencoder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from accelerate import Accelerator
from torch import nn

from distillkit.contracts.learner import Learner, OptimizerConfig
from distillkit.contracts.source import Batches
from distillkit.contracts.step import Draws
from distillkit.engine.config import TrainingConfig
from distillkit.engine.loop import Loop
from distillkit.engine.networks import Held
from distillkit.engine.optimization import MovingAverage, Updater, learning_rate_factor
from distillkit.engine.passes import learner_pass
from distillkit.engine.preparation import checkpoint_gradients, lay_out
from distillkit.errors import UsageError


class LearnerTrainer(Loop):
    """Trains a learner whose loss reads no student; its moving average is what is evaluated and kept.

    Args:
        learner: moved to the device here; its `loss` is given `Draws`.
        config: the training configuration.
        accelerator: device, processes, precision.
        seed: of all draws.
        sources: opened, by the type of their batches.
        say: hears what was chosen for the user.

    Raises:
        UsageError: when the batch cannot be shared evenly by the processes, or snapshots of averages are asked for.
    """

    def __init__(
        self,
        learner: Learner,
        config: TrainingConfig,
        *,
        accelerator: Accelerator,
        seed: int,
        sources: Mapping[type, Batches[Any]],
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        if config.ema_sigmas:
            raise UsageError(
                f"--ema-sigmas keeps averages of networks that denoise, and {learner.name} is none: leave it out"
            )
        super().__init__(config, accelerator=accelerator, seed=seed, say=say)
        self.learner, self.sources = learner.to(accelerator.device).train(), sources
        # What is evaluated and written has no dropout.
        self.ema: Learner = copy.deepcopy(self.learner).eval()
        self.networks = Alone(self.learner, self.ema)
        self.diagnostics = list(learner.diagnostics)
        if config.gradient_checkpointing:
            checkpoint_gradients(self.learner)
        self.average = MovingAverage.configured(self.learner, self.ema, config)

    def train_step(self) -> None:
        """One update of the learner and of its moving average."""
        self._enter(self.step)
        name, updater, batch = self.learner.name, self._updaters[self.learner.name], self.config.batch
        for part in self._parts():
            step = Draws(
                index=self.step,
                indices=part.indices,
                rng=self.rng,
                device=self.accelerator.device,
                sources=self.sources,
                batch=batch,
            )
            learner_pass(self.learner, step, part, updater, self.accelerator, self._means)
            for title, value in step.logged.items():
                self._means.add(title, value, part.share)
        images = (self.step + 1) * batch
        norm = updater.apply(learning_rate_factor(self.config, images, self.config.steps * batch))
        if norm is not None:
            self._means.add(f"grad_norm/{name}", norm)
        self.average.update(batch, images)
        self.step += 1

    def prepare(self, channels_last: bool | None = None) -> None:
        if self.channels_last is not None:
            return
        if channels_last is None:
            asked = self.config.channels_last
            channels_last = asked == "on" or (asked == "auto" and self.accelerator.device.type == "cuda")
        self.channels_last = channels_last
        lay_out((self.learner, self.ema), channels_last=channels_last)
        self.average.look_anew()

    def _enter(self, step: int, *, resuming: bool = False) -> None:
        if not self._updaters:
            self.prepare()
            parameters = list(self.learner.parameters())
            gradients = self.strategy.gradients(self.learner)
            self._updaters = {self.learner.name: Updater(parameters, self.config, self.accelerator, gradients)}


class Alone(Held):
    """A learner and its moving average."""

    def __init__(self, learner: Learner, average: Learner) -> None:
        self.learner, self.average = learner, average

    @property
    def changed(self) -> dict[str, nn.Module]:
        return {self.learner.name: self.learner, "average": self.average}

    @property
    def optimised(self) -> dict[str, OptimizerConfig | None]:
        return {self.learner.name: None}
