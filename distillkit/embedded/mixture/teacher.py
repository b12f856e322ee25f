"""The embedded teacher whose distribution is known: eight Gaussians on a circle, with their exact denoiser.

Everything about it can be computed: its scores, its samples' density, and so how far a student is from it. Students and
score estimators start from a small network that was fitted to the exact denoiser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.schedule import Schedule
from distillkit.contracts.source import Batches, Images
from distillkit.contracts.teacher import Teacher
from distillkit.diffusion.schedules import EDMSchedule
from distillkit.embedded.assets import asset_path, shipped_records
from distillkit.embedded.mixture.data import MixturePoints
from distillkit.models.store.card import Card, TeacherOffer
from distillkit.models.store.folder import read_spec, read_teacher
from distillkit.progress import Reporter

SPEC, WEIGHTS = "mixture-teacher.json", "mixture-teacher.safetensors"
MODES, RADIUS, SPREAD = 8, 0.7, 0.05


def means() -> Tensor:
    """The centres of the modes, (8, 2) float64."""
    angle = 2 * math.pi * torch.arange(MODES, dtype=torch.float64) / MODES
    return RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)


class MixtureDenoiser(Denoiser):
    """E[x0 | x] for x0 from equal Gaussians N(m_k, s^2 I) and x = x0 + sigma n, in closed form:

    D = sum_k r_k (s^2 x + sigma^2 m_k) / (s^2 + sigma^2), r_k = softmax_k(-|x - m_k|^2 / (2 (s^2 + sigma^2))).

    Args:
        network: has the layers that a formula has not; features are its own.
    """

    def __init__(self, schedule: Schedule | None = None, network: Denoiser | None = None) -> None:
        super().__init__()
        self.schedule = schedule or EDMSchedule()
        self._network = (network,)  # in a tuple: its weights are not this denoiser's
        self.means: Tensor
        self.register_buffer("means", means().float())

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        if self.partial and self._network[0] is not None:
            return self._network[0](x, t, condition)
        variance = t.to(x.dtype).square()[:, None]
        total = variance + SPREAD**2
        centres = self.means.to(x.dtype)
        nearest = torch.softmax(-(x[:, None] - centres).square().sum(2) / (2 * total), dim=1) @ centres
        return (SPREAD**2 * x + variance * nearest) / total

    def layer(self, name: str) -> nn.Module:
        return super().layer(name) if self._network[0] is None else self._network[0].layer(name)

    def layers_at(self, depths: Sequence[float]) -> list[str]:
        network = self._network[0]
        return super().layers_at(depths) if network is None else network.layers_at(depths)

    def with_features(
        self, x: Tensor, t: Tensor, condition: Condition, layers: Sequence[str] = ("bottleneck",)
    ) -> tuple[Tensor, list[Tensor]]:
        return self(x, t, condition), self.features(x, t, condition, layers)


class MixtureTeacher(Teacher):
    """The exact denoiser as a teacher of points (B, 2).

    Args:
        fitted: the teacher whose network students and score estimators are copies of, and whose features this one has.
    """

    def __init__(self, fitted: Teacher) -> None:
        exact = MixtureDenoiser(fitted.schedule, fitted.denoiser)
        super().__init__(exact, fitted.spec, fitted.conditioner, fitted.codec)
        self._start = fitted.denoiser

    @property
    def start(self) -> Denoiser:
        return self._start

    def to(self, device: torch.device | str) -> Teacher:
        self._start.to(device)
        return super().to(device)


def offer() -> TeacherOffer:
    """What the hook offers."""
    card = Card(
        read_spec(asset_path(SPEC)), "eight Gaussians in the plane, known exactly", parameters=102_146, images=serve,
        exact=True,
    )  # fmt: skip
    return TeacherOffer(card, _read)


def serve(teacher: Teacher, device: torch.device) -> Batches[Images]:
    """Points of the mixture, drawn anew for every sample of every step."""
    return MixturePoints(means().float(), SPREAD, device)


def _read(reporter: Reporter, should_stop: Callable[[], int]) -> Teacher:
    teacher = MixtureTeacher(read_teacher(asset_path(SPEC), asset_path(WEIGHTS)))
    teacher.records = shipped_records()
    return teacher
