"""Networks, a conditioner and a codec of the kit's small teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distillkit.contracts.codec import Codec, Content, Pixels
from distillkit.contracts.condition import Condition
from distillkit.contracts.conditioner import Conditioner
from distillkit.contracts.denoiser import Denoiser
from distillkit.diffusion.denoisers import EDMPreconditioning, Prediction, PredictionDenoiser
from distillkit.diffusion.schedules import EDMSchedule, schedule_of
from distillkit.errors import UsageError


class SmallNetwork(nn.Module):
    """F(x, level, labels) -> x's shape, for samples (B, C, ...) with `rank` axes behind the channels.

    Args:
        channels: C. rank: 0 for points (B, C), 2 for images, 3 for video.
        classes: number of classes; one-hot labels (B, classes) are added to the level's embedding.
    """

    def __init__(self, channels: int, rank: int, classes: int = 0, width: int = 16) -> None:
        super().__init__()

        def layer(inner: int, outer: int) -> nn.Module:
            if rank == 0:
                return nn.Linear(inner, outer)
            return (nn.Conv2d if rank == 2 else nn.Conv3d)(inner, outer, 3, padding=1)

        self.first, self.bottleneck, self.last = layer(channels, width), layer(width, width), layer(width, channels)
        self.level = nn.Linear(3, width)
        self.label = nn.Linear(classes, width, bias=False) if classes else None

    @property
    def blocks(self) -> list[nn.Module]:
        return [self.first, self.bottleneck]

    @property
    def time_layers(self) -> Sequence[nn.Linear]:
        return [self.level]

    def forward(self, x: Tensor, level: Tensor, labels: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        embedded = self.level(torch.stack([level, level.cos(), level.sin()], dim=1).to(x.dtype))
        if self.label is not None and labels is not None:
            embedded = embedded + self.label(labels)
        hidden = F.silu(self.first(x) + embedded.reshape(*embedded.shape, *(1,) * (x.ndim - 2)))
        return self.last(F.silu(self.bottleneck(hidden)))


class _Predicting(nn.Module):
    """The network as `PredictionDenoiser` calls it: level from time, one-hot vectors from labels."""

    def __init__(self, network: SmallNetwork, classes: int, t_max: float) -> None:
        super().__init__()
        self.network, self.classes, self.t_max = network, classes, t_max

    @property
    def bottleneck(self) -> nn.Module:
        return self.network.bottleneck

    @property
    def blocks(self) -> list[nn.Module]:
        return self.network.blocks

    @property
    def time_layers(self) -> Sequence[nn.Linear]:
        return self.network.time_layers

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        one_hot = None
        if self.classes and (labels := condition.get("labels")) is not None:
            one_hot = F.one_hot(labels.remainder(self.classes + 1), self.classes + 1)[:, :-1].to(x.dtype)
        return self.network(x, 3 * t / self.t_max, one_hot)


def small_denoiser(
    channels: int,
    rank: int,
    classes: int = 0,
    prediction: Prediction | Literal["edm"] = "edm",
    schedule: Mapping[str, Any] | None = None,
) -> Denoiser:
    """A denoiser of any rank, prediction and schedule.

    Args:
        channels, rank, classes: of the network.
        prediction: what the network predicts; "edm" is EDM's preconditioning, on EDM's schedule.
        schedule: {"kind": "edm", "vp" or "flow", ...}.
    """
    network = SmallNetwork(channels, rank, classes)
    if prediction == "edm":
        edm = EDMSchedule.model_validate(dict(schedule or {}))
        return EDMPreconditioning(network, label_dim=classes, schedule=edm)
    chosen = schedule_of(schedule or {"kind": "edm"})
    return PredictionDenoiser(_Predicting(network, classes, chosen.t_max), chosen, prediction)


class SmallPrompts(Conditioner):
    """A few prompts, encoded without a text encoder; the mask covers as many words as a prompt has."""

    prompts: tuple[str, ...] = Field(("dot", "a line", "a large square"), min_length=1)

    @property
    def count(self) -> int:
        return len(self.prompts)

    @property
    def has_null(self) -> bool:
        return True

    def encode(self, keys: Tensor) -> Condition:
        words = max(len(prompt.split()) for prompt in self.prompts)
        numbers = torch.arange(1, 4 * words + 1, device=keys.device).reshape(1, words, 4)
        lengths = torch.tensor([len(prompt.split()) for prompt in self.prompts], device=keys.device)
        mask = torch.arange(words, device=keys.device) < lengths[keys][:, None]
        return Condition(text=(numbers * (1 + keys.reshape(-1, 1, 1))).float().sin(), mask=mask)

    def null(self, condition: Condition) -> Condition:
        return condition.extended(text=torch.zeros_like(condition["text"]))

    def parse(self, typed: Sequence[str]) -> Tensor:
        if unknown := [text for text in typed if text not in self.prompts]:
            raise UsageError(f"{unknown[0]!r} is none of the prompts {', '.join(self.prompts)}")
        return torch.tensor([self.prompts.index(text) for text in typed], dtype=torch.int64)

    def names(self, keys: Tensor) -> list[str]:
        return [self.prompts[key] for key in keys.tolist()]

    def summary(self) -> str:
        return "text"


class SmallLatents(Codec):
    """Latents (B, 4, H, W) whose first three channels are the colours of an image of twice the resolution."""

    @property
    def content(self) -> Content:
        return "images"

    def decode(self, samples: Tensor) -> Tensor:
        return Pixels().decode(self.images(samples))

    def images(self, samples: Tensor) -> Tensor:
        return F.interpolate(samples[:, :3].float(), scale_factor=2.0)

    def encode(self, data: Tensor) -> Tensor:
        return F.pad(F.avg_pool2d(Pixels().encode(data), 2), (0, 0, 0, 0, 0, 1))

    def decoded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return 3, 2 * shape[1], 2 * shape[2]

    def encoded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return 4, shape[1] // 2, shape[2] // 2
