"""Optimisers with schedule, clipping and loss scaling, and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distillkit.contracts.learner import OptimizerConfig
from distillkit.engine.config import TrainingConfig


def learning_rate_factor(config: TrainingConfig, images: float, duration: float) -> float:
    """Warm-up from zero, then the schedule's course; 1 is the full learning rate."""
    rise = min(1.0, images / config.warmup) if config.warmup else 1.0
    left = max(0.0, 1 - images / duration)
    fall = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[config.lr_schedule]
    return rise * fall


class Updater:
    """Everything that turns one role's losses into updates of its parameters.

    Gradients are summed over micro-batches by `backward`, averaged over processes, unscaled (fp16), clipped to
    a norm and applied by `apply`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], config: OptimizerConfig, accelerator: Accelerator) -> None:
        self.parameters, self.config, self.accelerator = list(parameters), config, accelerator
        shared: dict[str, Any] = {
            "lr": config.lr,
            "betas": (config.beta1, config.beta2),
            "weight_decay": config.weight_decay,
        }
        if config.optimizer == "radam":
            self.optimizer: torch.optim.Optimizer = torch.optim.RAdam(self.parameters, **shared)
        else:
            kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
            self.optimizer = kind(self.parameters, fused=accelerator.device.type in ("cpu", "cuda"), **shared)
        self.scaler = torch.amp.GradScaler(
            accelerator.device.type, enabled=accelerator.mixed_precision == "fp16", init_scale=2.0**14
        )

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def apply(self, factor: float) -> Tensor:
        """Update the parameters with `factor` times the learning rate; returns the gradient norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * factor
        self._average_over_processes()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _average_over_processes(self) -> None:
        if self.accelerator.num_processes == 1:
            return
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        flat = self.accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values of the optimiser and the loss scaler."""
        state = self.optimizer.state_dict()["state"]
        tensors = {f"{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}
        return tensors, {"scaler": self.scaler.state_dict()}

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            index, _, key = name.partition(".")
            parameter = self.parameters[int(index)]
            # A moment lies in memory as its parameter does (channels-last, say): fused kernels rely on it.
            laid_out = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
            state.setdefault(int(index), {})[key] = laid_out
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.scaler.load_state_dict(values["scaler"])


class MovingAverage:
    """Exponential moving average of a module's parameters, by half-life in images (Karras et al. 2022).

    While fewer than `halflife / rampup` images have been seen, the half-life is `rampup` times that number.
    """

    def __init__(self, source: nn.Module, target: nn.Module, *, halflife: float, rampup: float) -> None:
        self.source, self.target = source, target.requires_grad_(False)
        self.halflife, self.rampup = halflife, rampup
        self._from = [p.detach() for p in source.parameters()]
        self._to = [p.detach() for p in target.parameters()]

    @torch.no_grad()
    def restart(self) -> None:
        """Make the average equal to the present weights."""
        torch._foreach_copy_(self._to, self._from)

    @torch.no_grad()
    def update(self, images: float, seen: float) -> None:
        """Take in the weights after a step of `images` images, `seen` in all."""
        halflife = min(self.halflife, seen * self.rampup)
        decay = 0.5 ** (images / halflife) if halflife > 0 else 0.0
        torch._foreach_lerp_(self._to, self._from, 1 - decay)
