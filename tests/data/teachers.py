"""Small teachers for the data's tests: a linear denoiser on any shape, and a codec of latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import PrivateAttr
from torch import Tensor, nn

from distillkit import ClassLabels, Codec, Condition, Conditioner, Denoiser, Teacher, TeacherSpec, TextEncoder
from distillkit.contracts.schedule import per_sample
from distillkit.diffusion.schedules import EDMSchedule


class LinearDenoiser(Denoiser):
    """D(x, t, c) = w x / (1 + t^2) + the class' offset."""

    def __init__(self, weight: float = 0.5, schedule: EDMSchedule | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.offsets = nn.Parameter(torch.linspace(-1, 1, 11))
        self.schedule = schedule or EDMSchedule()

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        out = self.weight * x / per_sample(1 + t.square(), x)
        if "labels" in condition:
            out = out + per_sample(self.offsets[condition["labels"] + 1], x)
        return out


class HalfSize(Codec):
    """Latents (2 C, H / 2, W / 2) of images: their mean over squares, twice."""

    factor: int = 2

    @property
    def content(self) -> str:
        return "images"

    def decode(self, samples: Tensor) -> Tensor:
        up = F.interpolate(samples[:, : samples.shape[1] // 2], scale_factor=float(self.factor))
        return (up * 127.5 + 128).clamp(0, 255).to(torch.uint8)

    def encode(self, data: Tensor) -> Tensor:
        small = F.avg_pool2d(data.float() / 127.5 - 1, self.factor)
        return torch.cat([small, small], dim=1)

    def decoded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0] // 2, shape[1] * self.factor, shape[2] * self.factor)

    def encoded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0] * 2, shape[1] // self.factor, shape[2] // self.factor)


LENGTH, WIDTH = 8, 12


class Letters(TextEncoder):
    """Every kind of field: states, a mask, a pooled vector, sizes and one number; remembers what it has encoded."""

    scale: float = 1.0
    guided: bool = True

    _seen: list[str] = PrivateAttr(default_factory=list)
    _released: list[bool] = PrivateAttr(default_factory=list)

    def encode(self, texts: Sequence[str]) -> Condition:
        self._seen.extend(texts)
        rows = [[float(ord(letter)) for letter in text[:LENGTH].ljust(LENGTH)] for text in texts]
        codes = torch.tensor(rows) * self.scale
        angles = codes[..., None] * torch.arange(1, WIDTH + 1) / 77
        return Condition(
            text=angles.sin() * self.scale, mask=codes != 32, pooled=angles.cos().mean(1),
            sizes=torch.full((len(texts), 2), 2049.0), numbers=torch.tensor([[len(text)] for text in texts]),
            strength=torch.full((len(texts),), 3.5),
        )  # fmt: skip

    @property
    def has_null(self) -> bool:
        return self.guided

    def null(self) -> Condition:
        assert self.guided
        encoded = self.encode([""])
        return Condition(text=encoded["text"], pooled=encoded["pooled"])

    def release(self) -> None:
        self._released.append(True)


TEN = ClassLabels(classes=10)


def linear_teacher(
    shape: tuple[int, ...] = (3, 8, 8),
    conditioner: Conditioner | None = TEN,
    codec: Codec | None = None,
    weight: float = 0.5,
    schedule: EDMSchedule | None = None,
    **facts: object,
) -> Teacher:
    spec = TeacherSpec(name="linear", shape=shape, **{"solver_steps": 3, **facts})
    return Teacher(LinearDenoiser(weight, schedule), spec, conditioner, codec)
