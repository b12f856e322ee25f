"""A denoiser that sees a second time: the one that a step leads to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillkit import Condition, Denoiser, build_denoiser

UNTIL = "until"
"""The field of a condition that says where a step leads to: sigma / alpha there, (B,); 0 is the clean sample."""
FREQUENCIES = 4


class SecondTime(nn.Module):
    """A network's layer of the embedded time beside one of the embedded t - r, whose weights start at zero: one layer
    of both embeddings side by side (Geng et al. 2025, section 4.3).

    Args:
        layer: (B, K) -> (B, C) of the embedded time, C its `out_features`.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        channels: Any = layer.out_features
        self.layer, self.second = layer, nn.Linear(2 * FREQUENCIES, channels, bias=False)
        nn.init.zeros_(self.second.weight)
        self.embedded: Tensor | None = None

    def forward(self, embedded: Tensor) -> Tensor:
        out = self.layer(embedded)
        return out if self.embedded is None else out + self.second(self.embedded.to(out.dtype))


class TwoTimes(Denoiser):
    """X(x, t, condition) with `until` in the condition: the sample with which one Euler step leads from x at t to the
    point of the trajectory there. Where that is t itself, or the condition does not say it, X is the denoiser's x0.

    It starts as the denoiser at every pair of times.

    Args:
        inner: a denoiser that names its layers of the time; changed here.

    Raises:
        DistillkitError: where it names none.
    """

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        layers = inner.time_layers()
        places = {module: name for name, module in inner.named_modules()}
        for layer in layers:
            above, _, name = places[layer].rpartition(".")
            inner.get_submodule(above).register_module(name, SecondTime(layer))
        self.inner, self.schedule = inner, inner.schedule
        self.sigma_data = float(getattr(inner, "sigma_data", 0.5))
        if inner.description is not None:
            self.description = {"kind": "distillkit:TwoTimes", "arguments": {"network": dict(inner.description)}}

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        rest = Condition(**{name: value for name, value in condition.items() if name != UNTIL})
        embedded = self.embed(t, condition[UNTIL]) if UNTIL in condition else None
        seconds = [module for module in self.modules() if isinstance(module, SecondTime)]
        before = [second.embedded for second in seconds]
        for second in seconds:
            second.embedded = embedded
        out = self.inner(x, t, rest)
        # Gradient checkpointing computes a pass anew on the way back, and must find what it had.
        if not torch.is_grad_enabled():
            for second, kept in zip(seconds, before, strict=True):
                second.embedded = kept
        return out

    def embed(self, t: Tensor, until: Tensor) -> Tensor:
        """Features of t - r in the time of a flow, s / (1 + s) with s = sigma / alpha; zero where r = t.

        Args:
            t: (B,), of the schedule.
            until: (B,), sigma / alpha of r.

        Returns:
            (B, 2 `FREQUENCIES`) float32.
        """
        ratio = self.schedule.ratio(t.float())
        apart = ratio / (1 + ratio) - until / (1 + until)
        angles = apart[:, None] * (math.pi / 2 * 2.0 ** torch.arange(FREQUENCIES, device=t.device))
        return torch.cat([1 - angles.cos(), angles.sin()], dim=1)

    def loss_weight(self, t: Tensor) -> Tensor:
        return self.inner.loss_weight(t)

    def layer(self, name: str) -> nn.Module:
        return self.inner.layer(name)

    def layers_at(self, depths: Sequence[float]) -> list[str]:
        return self.inner.layers_at(depths)

    def feature(self, output: Any, x: Tensor) -> Tensor:
        return self.inner.feature(output, x)

    def after_update(self) -> None:
        self.inner.after_update()


def two_times(network: Mapping[str, Any]) -> Denoiser:
    """A denoiser of two times with fresh weights.

    Args:
        network: the description of the denoiser inside, {"kind": "package:Name", "arguments": {...}}.
    """
    return TwoTimes(build_denoiser(network))
