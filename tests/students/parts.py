"""A plugin with its own network, sampler, conditioner and codec, as a package would offer them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import nn

from distillkit import ClassLabels, Codec, Condition, OneStep, Pixels, Sampler
from distillkit.diffusion import EDMPreconditioning, PredictionDenoiser, schedule_of
from distillkit.registry import Plugin

PACKAGE = "tiny-parts"


class TinyNet(nn.Module):
    """F(x, t, condition) of samples of any rank, in a few numbers."""

    def __init__(self, channels: int, classes: int = 0, width: int = 4) -> None:
        super().__init__()
        self.read, self.write = nn.Linear(channels, width), nn.Linear(width, channels)
        self.place = nn.Embedding(classes + 1, width)
        self.bottleneck = nn.Identity()

    def forward(self, x: Any, t: Any, condition: Any, augment: Any = None) -> Any:
        labels = condition.get("labels") if isinstance(condition, Condition) else None
        if condition is not None and not isinstance(condition, Condition):  # one-hot vectors, as EDM's networks take
            labels = condition.argmax(1)
        rows = self.place.weight[-1].expand(len(x), -1) if labels is None else self.place(labels)
        level = t.to(x.dtype)[:, None]
        seen = self.read(x.movedim(1, -1))
        rows = (rows + torch.sin(level)).reshape(len(x), *(1,) * (x.ndim - 2), -1)
        return self.write(self.bottleneck(torch.tanh(seen + rows))).movedim(-1, 1)


def tiny_denoiser(
    network: Mapping[str, Any], schedule: Mapping[str, Any], prediction: str = "sample"
) -> PredictionDenoiser:
    return PredictionDenoiser(TinyNet(**network), schedule_of(schedule), prediction)  # type: ignore[arg-type]


def tiny_edm(network: Mapping[str, Any]) -> EDMPreconditioning:
    return EDMPreconditioning(TinyNet(**network), label_dim=network.get("classes", 0))


class Twice(Sampler):
    """Two evaluations: the second on the first one's result."""

    weight: float = Field(0.5, gt=0)
    evaluations: int = 2

    def __call__(self, denoiser, noise, condition, renoise=None):  # type: ignore[no-untyped-def]
        t = torch.full((len(noise),), denoiser.schedule.t_max, device=noise.device)
        x = denoiser.schedule.start(noise)
        for _ in range(self.evaluations):
            x = self.weight * denoiser(x, t, condition)
        return x

    def with_nfe(self, nfe, denoiser):  # type: ignore[no-untyped-def]
        return self.model_copy(update={"evaluations": nfe})


class Backwards(OneStep):
    """One step, of the negative noise."""

    def __call__(self, denoiser, noise, condition, renoise=None):  # type: ignore[no-untyped-def]
        return super().__call__(denoiser, -noise, condition, renoise)


class Inverted(Pixels):
    """Pixels as a negative."""

    def decode(self, samples):  # type: ignore[no-untyped-def]
        return 255 - super().decode(samples)


class Halves(ClassLabels):
    """Class labels whose second half is drawn alone."""

    def in_turn(self, indices):  # type: ignore[no-untyped-def]
        return self.classes // 2 + super().in_turn(indices) % (self.classes // 2)


class TinyAutoencoder(Codec):
    """Latents (B, 4, H, W) to images (B, 3, 2H, 2W): channels summed and repeated."""

    gain: float = 60.0

    @property
    def content(self):  # type: ignore[no-untyped-def]
        return "images"

    def decode(self, samples):  # type: ignore[no-untyped-def]
        wide = samples[:, :3].repeat_interleave(2, -1).repeat_interleave(2, -2)
        return (wide * self.gain + 128).clamp(0, 255).to(torch.uint8)

    def encode(self, data):  # type: ignore[no-untyped-def]
        raise NotImplementedError

    def decoded_shape(self, shape):  # type: ignore[no-untyped-def]
        return (3, 2 * shape[1], 2 * shape[2])


def plugin() -> Plugin:
    offers = {
        "networks": {"TinyNet": tiny_denoiser, "TinyEDM": tiny_edm},
        "samplers": {"Twice": Twice, "Backwards": Backwards},
        "conditioners": {"Halves": Halves},
        "codecs": {"TinyAutoencoder": TinyAutoencoder, "Inverted": Inverted},
    }
    return Plugin("tiny", PACKAGE, "1.0", "tests.students.parts", offers)
