"""Small teachers of every kind that a method may meet, with random weights: milliseconds on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.models.edm.families import describe_network
from distillkit.jobs.teacher_recipe import fresh_teacher

SPREAD = 0.1
"""Fresh networks answer zero everywhere; noise on all weights makes them answer something."""


def conditional() -> Teacher:
    """Ten classes, 8 x 8 pixels."""
    return _unet(10)


def unconditional() -> Teacher:
    """8 x 8 pixels without classes."""
    return _unet(0)


def text_to_latent() -> Teacher:
    """Latents (4, 8, 8) from text embeddings with a mask; decoded to twice the resolution."""
    spec = TeacherSpec(
        name="text-to-latent", shape=(4, 8, 8), solver_steps=3, network={"class": "TextDenoiser", "arguments": {}}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TextTeacher(_stirred(TextDenoiser()), spec)


TEACHERS: Mapping[str, Callable[[], Teacher]] = {
    "class-conditional": conditional,
    "unconditional": unconditional,
    "latent, told by text": text_to_latent,
}


class TextDenoiser(Denoiser):
    """A small network that is told `text` (B, T, D) under a `mask` (B, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)
        self.told, self.middle = nn.Linear(6, 16), nn.Conv2d(16, 16, 3, padding=1)

    @property
    def bottleneck(self) -> nn.Module:
        return self.middle

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        s = sigma.to(x.dtype).view(-1, 1, 1, 1)
        mask = condition["mask"].to(x.dtype)[:, :, None]
        text = (condition["text"] * mask).sum(1) / mask.sum(1).clamp(min=1)
        told = self.told(torch.cat([text, s.flatten(1).log(), torch.ones_like(s).flatten(1)], dim=1))
        hidden = F.silu(self.first(x * (s.square() + 0.25).rsqrt()) + told[:, :, None, None])
        out = self.last(F.silu(self.middle(hidden)))
        return 0.25 / (s.square() + 0.25) * x + 0.5 * s * (s.square() + 0.25).rsqrt() * out


class TextTeacher(Teacher):
    """A teacher whose conditions are no labels and whose samples are no pixels."""

    def draw_condition(self, uniform: Tensor) -> Condition:
        phase = torch.arange(12).view(1, 3, 4) * (1 + uniform.float().view(-1, 1, 1))
        return Condition(text=phase.sin(), mask=torch.tensor([[True, True, False]]).expand(len(uniform), 3))

    def null_condition(self, condition: Condition) -> Condition:
        return Condition(text=torch.zeros_like(condition["text"]), mask=condition["mask"])

    def decode(self, x: Tensor) -> Tensor:
        return super().decode(F.interpolate(x[:, :3], scale_factor=2.0))


def _unet(classes: int) -> Teacher:
    network = describe_network(
        "adm", 8, 1, classes, model_channels=8, channel_mult=[1], channel_mult_emb=2, num_blocks=1,
        attn_resolutions=[], dropout=0.0,
    )  # fmt: skip
    spec = TeacherSpec(name="tiny", shape=(1, 8, 8), num_classes=classes, solver_steps=3, network=network)
    teacher = fresh_teacher(spec, 0)
    return Teacher(_stirred(teacher.denoiser), spec)


@torch.no_grad()
def _stirred(denoiser: Denoiser) -> Denoiser:
    generator = torch.Generator().manual_seed(1)
    for parameter in denoiser.parameters():
        parameter.add_(SPREAD * torch.randn(parameter.shape, generator=generator))
    return denoiser
