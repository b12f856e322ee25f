"""Optimisers with schedule, clipping and loss scaling, and the moving average of weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distillkit.contracts.learner import OptimizerConfig
from distillkit.counts import images_of
from distillkit.engine.config import TrainingConfig
from distillkit.engine.optimizers import (
    blank_state,
    make_optimizer,
    optimizer_state,
    plain_state,
    set_rate,
    state_shapes,
)
from distillkit.errors import DistillkitError
from distillkit.parallel.replicate import Replicated
from distillkit.parallel.strategy import Gradients, local_of
from distillkit.power_ema import power_decay

SMALLEST_SCALE = 2.0**-10
"""Of an fp16 loss. Gradients that overflow even so do not overflow: they are not finite."""


def merged(run: OptimizerConfig, own: OptimizerConfig | None) -> OptimizerConfig:
    """The run's optimiser with a learner's own settings over it, of which only those that were given count."""
    shared = {name: getattr(run, name) for name in OptimizerConfig.model_fields}
    given = {name: getattr(own, name) for name in own.model_fields_set} if own else {}
    return OptimizerConfig.model_validate(shared | given)


def learning_rate_factor(config: TrainingConfig, images: float, duration: float) -> float:
    """Warm-up from zero, then the schedule's course; 1 is the full learning rate. `inverse-sqrt` is 1 / sqrt(max(t /
    t_ref, 1)) with t the images and t_ref where it begins to fall (Karras et al. 2024, arXiv 2312.02696)."""
    warmup = images_of(config.warmup, duration)
    rise = min(1.0, images / warmup) if warmup else 1.0
    left, begun = max(0.0, 1 - images / duration), images_of(config.lr_decay_from, duration)
    fall = {
        "constant": 1.0,
        "linear": left,
        "cosine": 0.5 - 0.5 * math.cos(math.pi * left),
        "inverse-sqrt": math.sqrt(min(1.0, max(begun, 1.0) / max(images, 1.0))),
    }[config.lr_schedule]
    return rise * fall


class Updater:
    """Everything that turns one role's losses into updates of its parameters.

    Gradients are summed over micro-batches by `backward`, averaged over processes, unscaled (fp16), clipped to
    a norm and applied by `apply`. Where they overflow in fp16 the update is skipped and the loss is scaled less.

    Args:
        gradients: of the parameters, as they are spread over processes; whole on each if none.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        config: OptimizerConfig,
        accelerator: Accelerator,
        gradients: Gradients | None = None,
    ) -> None:
        self.parameters, self.config, self.accelerator = list(parameters), config, accelerator
        self.gradients = gradients or Replicated(self.parameters, accelerator.num_processes)
        self._skipped = 0
        self.optimizer: torch.optim.Optimizer = make_optimizer(self.parameters, config, accelerator.device)
        self.scaler = torch.amp.GradScaler(
            accelerator.device.type, enabled=accelerator.mixed_precision == "fp16", init_scale=2.0**14
        )

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """Add the gradient of a loss.

        Args:
            last: whether it is the update's last; what was added up is averaged over processes in its pass.
        """
        with self.gradients.passing(last=last):
            self.scaler.scale(loss).backward()

    def close(self) -> None:
        """Let go of the parameters, which another updater takes over."""
        self.gradients.close()

    def apply(self, factor: float) -> Tensor | None:
        """Update the parameters with `factor` times the learning rate; returns the gradient norm before clipping.

        None where fp16 overflowed and nothing was updated.

        Raises:
            DistillkitError: when no scale is small enough.
        """
        set_rate(self.optimizer, self.config.lr * factor)
        self.gradients.average()
        self.scaler.unscale_(self.optimizer)
        norm = self.gradients.clip(self.config.clip_grad_norm)
        self.scaler.step(self.optimizer)
        scale = self.scaler.get_scale()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.get_scale() >= scale:
            return norm
        if scale < SMALLEST_SCALE:
            raise DistillkitError(
                f"gradients are not finite in fp16, however small the loss is scaled ({scale:g}); use --precision bf16 "
                "or fp32, or a lower --lr"
            )
        self._skipped += 1
        return None

    def read_skipped(self) -> int:
        """Updates that were skipped since this was last asked."""
        skipped, self._skipped = self._skipped, 0
        return skipped

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values of the optimiser and the loss scaler."""
        tensors = {
            f"{index}.{key}": value
            for index, parameter in enumerate(self.parameters)
            for key, value in plain_state(self.optimizer.state.get(parameter, {}))
        }
        return tensors, {"scaler": self.scaler.state_dict(), "skipped": self._skipped}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors that `state` may give."""
        return {
            f"{index}.{key}": shape
            for index, parameter in enumerate(self.parameters)
            for key, shape in state_shapes(parameter, self.config.optimizer).items()
        }

    def blank(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors into which those of `state` can be read, laid out and sharded as its parameters are.

        Args:
            names: of those that are wanted, among the names of `shapes`.
        """
        found = {}
        for name in names:
            index, _, key = name.partition(".")
            found[name] = blank_state(self.parameters[int(index)], key)
        return found

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        plain: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            index, _, key = name.partition(".")
            plain.setdefault(int(index), {})[key] = value
        made = {
            self.parameters[index]: optimizer_state(self.parameters[index], entry) for index, entry in plain.items()
        }
        # The optimiser numbers them by its own groups.
        numbered = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state = {number: made[parameter] for number, parameter in enumerate(numbered) if parameter in made}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.scaler.load_state_dict(values["scaler"])
        self._skipped = values.get("skipped", 0)


class Average(ABC):
    """A moving average of a module's parameters; buffers, such as running statistics, are the module's of now.

    Args:
        source: the module in training.
        target: a copy of it, which holds the average.
    """

    def __init__(self, source: nn.Module, target: nn.Module) -> None:
        self.source, self.target = source, target.requires_grad_(False)
        self.look_anew()

    @abstractmethod
    def decay(self, images: float, seen: float) -> float:
        """The share that the average keeps of itself in a step of `images` images, `seen` in all."""

    def look_anew(self) -> None:
        """Find the weights again after they were put into another memory layout; those that both have in common are
        left out."""
        pairs = zip(self.source.parameters(), self.target.parameters(), strict=True)
        apart = [(source, target) for source, target in pairs if source is not target]
        # The parts that this process holds: an average needs no other.
        self._from = [local_of(source).detach() for source, _ in apart]
        self._to = [local_of(target).detach() for _, target in apart]
        buffers = zip(self.source.buffers(), self.target.buffers(), strict=True)
        self._buffers = [(source, target) for source, target in buffers if source is not target]

    @torch.no_grad()
    def restart(self) -> None:
        """Make the average equal to the present weights."""
        torch._foreach_copy_(self._to, self._from)
        self._take_buffers()

    @torch.no_grad()
    def update(self, images: float, seen: float) -> None:
        """Take in the weights after a step of `images` images, `seen` in all, these among them."""
        torch._foreach_lerp_(self._to, self._from, 1 - self.decay(images, seen))
        self._take_buffers()

    def _take_buffers(self) -> None:
        if self._buffers:
            torch._foreach_copy_([target for _, target in self._buffers], [source for source, _ in self._buffers])


class MovingAverage(Average):
    """Exponential moving average, by half-life in images (Karras et al. 2022).

    While fewer than `halflife / rampup` images have been seen, the half-life is `rampup` times that number.
    """

    def __init__(self, source: nn.Module, target: nn.Module, *, halflife: float, rampup: float) -> None:
        super().__init__(source, target)
        self.halflife, self.rampup = halflife, rampup

    @classmethod
    def configured(cls, source: nn.Module, target: nn.Module, config: TrainingConfig) -> MovingAverage:
        """With the half-life that a training asks for."""
        return cls(source, target, halflife=images_of(config.ema_halflife, config.duration), rampup=config.ema_rampup)

    def decay(self, images: float, seen: float) -> float:
        halflife = min(self.halflife, seen * self.rampup)
        return 0.5 ** (images / halflife) if halflife > 0 else 0.0


class PowerAverage(Average):
    """Average over a power function of time, by its relative width (Karras et al. 2024, arXiv 2312.02696, section 3.1):
    what it holds after the first step are the weights then, whatever it began with."""

    def __init__(self, source: nn.Module, target: nn.Module, *, sigma_rel: float) -> None:
        super().__init__(source, target)
        self.sigma_rel = sigma_rel

    def decay(self, images: float, seen: float) -> float:
        return power_decay(self.sigma_rel, images, seen)
