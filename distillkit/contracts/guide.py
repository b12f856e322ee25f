"""Guidance by another network: autoguidance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.schedule import Schedule, per_sample
from distillkit.errors import UsageError
from distillkit.names import Name

if TYPE_CHECKING:
    from distillkit.contracts.teacher import Teacher

BEYOND = 1.01
"""Ends of two schedules that differ by a smaller factor are the same to networks."""


class GuideSpec(BaseModel):
    """Facts about a network that guided a teacher; stored with figures and students."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field(description="by which people know it; never a path")
    weights_sha256: str = Field("", pattern="^([0-9a-f]{64})?$", description="sha256 of its weight file")
    licence: str = Field("", max_length=10_000, description="licence of its weights")
    source: str = Field("", max_length=10_000, description="where its weights come from")


class Guide:
    """The network that guidance leads away from: a smaller, less trained or unconditional one (autoguidance, Karras et
    al. 2024, arXiv 2406.02507).

    Args:
        teacher: whose denoiser it is, with its facts.
        schedule: of the denoiser that it guides, in whose samples and times it is called.

    Attributes:
        denoiser: the network, frozen; in place of it another with the same schedule may be put.
        conditional: whether it is given the conditions of what it guides.
    """

    def __init__(self, teacher: Teacher, schedule: Schedule) -> None:
        self.denoiser, self.spec, self.schedule = teacher.denoiser, teacher.spec, schedule
        self.conditional = teacher.conditioner.count > 0

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """D of x (B, ...) at t (B,), both of the guided denoiser's schedule; an unconditional network ignores the
        condition."""
        seen = condition if self.conditional else Condition()
        if self.denoiser.schedule != self.schedule:
            x, t = at_same_noise(x, t, self.schedule, self.denoiser.schedule)
        return self.denoiser(x, t, seen)

    @property
    def title(self) -> str:
        """Its name and the beginning of its hash: one of the same name may be a training of less."""
        sha256 = self.spec.weights_sha256
        return self.spec.name + (f" ({sha256[:8]})" if sha256 else "")

    @property
    def facts(self) -> GuideSpec:
        """What figures and students say of it."""
        return GuideSpec.model_validate(self.spec.model_dump(include=set(GuideSpec.model_fields)))

    @property
    def remark(self) -> str:
        """One line on noise levels that the guided denoiser is asked at and this one does not know; "" for none."""
        own, asked = _ends(self.denoiser.schedule), _ends(self.schedule)
        if own[0] <= BEYOND * asked[0] and asked[1] <= BEYOND * own[1]:
            return ""
        return (
            f"note: {self.spec.name} knows noise levels (sigma / alpha) from {own[0]:.3g} to {own[1]:.3g}, and guides "
            f"a teacher that is asked from {asked[0]:.3g} to {asked[1]:.3g}: beyond its ends it is asked at these"
        )


def at_same_noise(x: Tensor, t: Tensor, own: Schedule, other: Schedule) -> tuple[Tensor, Tensor]:
    """x_t of one schedule as x_t' of another: t' has the same sigma / alpha, and x is scaled to its alpha and sigma.

    Beyond the other's ends t' is its end, and x is scaled so that neither signal nor noise is stronger than there.

    Args:
        x: (B, ...). t: (B,). own: of these. other: of what is returned.
    """
    time = t.to(torch.promote_types(t.dtype, torch.float32))
    found = other.at(own.ratio(time))
    scale = torch.minimum(other.alpha(found) / own.alpha(time), other.sigma(found) / own.sigma(time))
    return x * per_sample(scale, x).to(x.dtype), found


def _ends(schedule: Schedule) -> tuple[float, float]:
    """Smallest and largest sigma / alpha."""
    low, high = schedule.ratio(torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)).tolist()
    return low, high


def require_guide(teacher: Teacher, other: Teacher) -> None:
    """Refuse a network that cannot guide a teacher.

    Raises:
        UsageError: saying what differs.
    """
    name, whom = other.spec.name, teacher.spec.name
    sha256 = teacher.spec.weights_sha256
    if other.guide is not None:
        raise UsageError(f"{name} is guided itself; a teacher is guided by a network alone")
    if other.denoiser is teacher.denoiser or (sha256 and sha256 == other.spec.weights_sha256):
        raise UsageError(
            f"{whom} cannot be guided by its own weights: both predict the same; name a smaller, less trained or "
            "unconditional network"
        )
    if other.spec.shape != teacher.spec.shape:
        shapes = [" x ".join(map(str, one.spec.shape)) for one in (other, teacher)]
        raise UsageError(f"{name} denoises samples {shapes[0]} and cannot guide {whom}, whose samples are {shapes[1]}")
    if not teacher.codec.agrees_with(other.codec):
        raise UsageError(
            f"{name} cannot guide {whom}: their samples mean something else (their codecs, {_kind(other.codec)} and "
            f"{_kind(teacher.codec)}, differ)"
        )
    if other.conditioner.count and not other.conditioner.agrees_with(teacher.conditioner):
        raise UsageError(
            f"{name} cannot guide {whom}: it takes other conditions ({other.conditioner.summary()}) than those of "
            f"{whom} ({teacher.conditioner.summary()}); an unconditional network takes none"
        )


def _kind(part: BaseModel) -> str:
    return type(part).__name__
