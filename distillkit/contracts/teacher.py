"""The Teacher role: a frozen denoiser, its conditioner, its codec and the facts about it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor

from distillkit.contracts.codec import Codec, Pixels
from distillkit.contracts.condition import Condition
from distillkit.contracts.conditioner import Conditioner, Unconditional
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.guide import Guide, require_guide
from distillkit.contracts.schedule import Schedule, per_sample
from distillkit.diffusion.solvers import SOLVERS, SolverName, times_of
from distillkit.errors import UsageError
from distillkit.names import Name

if TYPE_CHECKING:
    from distillkit.contracts.source import Batches, Images


LARGEST_SAMPLE = 2**28
"""Numbers in a sample: a gigabyte in float32."""


def _bounded(shape: tuple[int, ...]) -> tuple[int, ...]:
    if math.prod(shape) > LARGEST_SAMPLE:
        raise ValueError(f"a sample of {math.prod(shape):,} numbers is too large; at most {LARGEST_SAMPLE:,}")
    return shape


SampleShape = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, max_length=6), AfterValidator(_bounded)
]
"""The shape of a sample without the batch, such as (C, H, W)."""


class TeacherSpec(BaseModel):
    """Facts about a teacher that do not change while it is used; stored with every student made from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field(description="by which people know it; never a path")
    shape: SampleShape = Field(description="shape of a sample without the batch, such as (C, H, W)")
    network: dict[str, Any] = Field(
        default_factory=dict, description="kind and arguments of the network, its schedule among them"
    )
    conditioner: dict[str, Any] = Field(default_factory=dict, description="kind and fields of the conditioner")
    codec: dict[str, Any] = Field(default_factory=dict, description="kind and fields of the codec")
    solver: Literal["heun", "euler", "ddim"] = Field(
        "heun", description="deterministic sampler of its probability-flow ODE"
    )
    solver_steps: int = Field(18, ge=1, le=10_000, description="steps of that sampler")
    weights_sha256: str = Field("", pattern="^([0-9a-f]{64})?$", description="sha256 of the weight file")
    licence: str = Field("", max_length=10_000, description="licence of the weights")
    source: str = Field("", max_length=10_000, description="where the weights come from")


class Teacher:
    """A frozen denoiser with its conditioner, codec and facts.

    Methods use `teacher(...)`, `teacher.schedule`, `teacher.conditioner`, `teacher.copy_denoiser()` and facts that all
    models have (`spec.shape`, `guidable`, `denoiser.layers_at`), and so never learn what kind of model they distil.

    Args:
        denoiser: its network; frozen here.
        spec: facts. The descriptions of network, conditioner and codec are filled in from the objects when a student
            is saved.
        conditioner: the maker of its conditions; none by default.
        codec: the way to what people look at; pixels by default.

    Attributes:
        images: opens the data that it was trained on, where they come with it: device -> batches of `Images`.
        records: of its own figures, where they come with it, by the hash of all that they depend on.
        copying: makes the copies that `copy_denoiser` gives, where they are not to be whole ones.
        guide: the network that guidance leads away from, in the place of no condition; set by `guided_by`.
    """

    images: Callable[[torch.device], Batches[Images]] | None = None
    records: Mapping[str, Any] = {}
    copying: Callable[[Denoiser], Denoiser] | None = None
    guide: Guide | None = None

    def __init__(
        self, denoiser: Denoiser, spec: TeacherSpec, conditioner: Conditioner | None = None, codec: Codec | None = None
    ) -> None:
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.spec = spec
        self.conditioner: Conditioner = conditioner or Unconditional()
        self.codec: Codec = codec or Pixels()

    @property
    def schedule(self) -> Schedule:
        """The denoiser's noise schedule."""
        return self.denoiser.schedule

    def __call__(
        self, x: Tensor, t: Tensor, condition: Condition, guidance: float | Tensor = 1.0,
        negative: Condition | None = None, rescale: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """Denoise with classifier-free guidance: uncond + w (cond - uncond), w = `guidance` (Ho & Salimans 2022); of a
        teacher that another network guides with autoguidance: D0 + w (D1 - D0), D0 the guide's prediction
        (Karras et al. 2024, arXiv 2406.02507, Eq. 3).

        w = 1 is the plain conditional model, at one network evaluation instead of two.

        Args:
            x: (B, ...). t: (B,). condition: batch of B. guidance: w, of all or (B,) of each.
            negative: what is guided away from instead of no condition, a batch of B.
            rescale: share to which the guided prediction takes the standard deviation of the conditional one, against
                over-saturation (Lin et al. 2023, arXiv 2305.08891, Eq. 15 and 16, here of the predicted sample).

        Raises:
            UsageError: for a guidance weight where the model has no unconditional prediction, or something to guide
                away from beside a guide.
        """
        unguided = not isinstance(guidance, Tensor) and guidance == 1.0
        if unguided or (not condition and self.guide is None):
            return self.denoiser(x, t, condition)
        away, toward = self._both(x, t, condition, negative)
        weight = per_sample(guidance, away).to(away) if isinstance(guidance, Tensor) else guidance
        guided = torch.lerp(away, toward, weight)
        if not rescale:
            return guided
        wanted, found = (x.flatten(1).float().std(1) for x in (toward, guided))
        factor = 1 + rescale * (wanted / found.clamp(min=1e-12) - 1)
        return guided * per_sample(factor, guided).to(guided.dtype)

    def _both(self, x: Tensor, t: Tensor, condition: Condition, negative: Condition | None) -> tuple[Tensor, Tensor]:
        """What guidance leads away from and what it leads towards, both (B, ...)."""
        if self.guide is not None:
            if negative is not None:
                raise UsageError(
                    f"guidance of {self.spec.name} leads away from {self.guide.spec.name}, so that there is no place "
                    "for a negative prompt: leave one of them out"
                )
            toward = self.denoiser(x, t, condition)
            return self.guide(x, t, condition).to(toward.dtype), toward
        both = Condition.cat([self.conditioner.null(condition) if negative is None else negative, condition])
        null, conditional = self.denoiser(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return null, conditional

    def guided_by(self, other: Teacher) -> Self:
        """The same teacher, whose guidance leads away from another's prediction in the place of its own without a
        condition: autoguidance by a smaller, less trained or unconditional network.

        The other one's schedule and what its network predicts may differ: it is asked at the same sigma / alpha. Where
        it is conditional it is given the conditions of this one. Nothing of it is evaluated where w = 1.

        Raises:
            UsageError: for another shape of samples, other conditions, another codec, or the same weights.
        """
        require_guide(self, other)
        own = copy.copy(self)
        if isinstance(own.images, partial) and own.images.args == (self,):
            # Its data make their conditions by the teacher that they belong to.
            own.images = partial(own.images.func, own)
        own.guide = Guide(other, self.schedule)
        return own

    @property
    def guidable(self) -> bool:
        """Whether another guidance weight than 1 means something: where the model predicts without a condition too, or
        another network guides it."""
        return self.guide is not None or self.conditioner.has_null

    @property
    def denoisers(self) -> tuple[Denoiser, ...]:
        """All networks that are evaluated where it is guided: its own, and its guide's."""
        return (self.denoiser,) if self.guide is None else (self.denoiser, self.guide.denoiser)

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        condition: Condition,
        *,
        steps: int | None = None,
        solver: SolverName | None = None,
        guidance: float = 1.0,
        negative: Condition | None = None,
    ) -> Tensor:
        """Solve the probability-flow ODE from standard normal noise (B, ...); samples (B, ...) float32.

        Args:
            condition: batch of B, on the noise's device.
            steps: of the solver; the teacher's own number by default.
            solver: "heun", "euler" or "ddim"; the teacher's by default. The last two are Euler's step in two
                coordinates; with what the family's own samplers do at both ends they equal diffusers' schedulers.
            guidance: w.
            negative: what is guided away from instead of no condition, a batch of B.
        """
        name, schedule = solver or self.spec.solver, self.schedule.sized(noise.shape[1:])
        times = times_of(name, schedule, steps or self.spec.solver_steps)
        return SOLVERS[name](lambda x, t: self(x, t, condition, guidance, negative), noise, times, schedule)

    @property
    def start(self) -> Denoiser:
        """The network that students and score estimators are copies of."""
        return self.denoiser

    def copy_denoiser(self) -> Denoiser:
        """A trainable copy of `start`, dropout off: where students and score estimators begin.

        Where adapters are asked for, its weights are those of `start` themselves, frozen, with trained ones beside
        them.
        """
        return (self.copying or whole_copy)(self.start)

    def to(self, device: torch.device | str) -> Teacher:
        for denoiser in self.denoisers:
            denoiser.to(device)
        self.conditioner, self.codec = self.conditioner.to(device), self.codec.to(device)
        return self


def guidance_title(weight: float, teacher: Teacher | None = None) -> str:
    """How samples are guided, for people: 'guidance 3', 'guidance 2 with NAME (HASH)' of a teacher with a guide."""
    guide = teacher.guide if teacher is not None else None
    return f"guidance {weight:g}" + (f" with {guide.title}" if guide and weight != 1 else "")


def whole_copy(denoiser: Denoiser) -> Denoiser:
    """A copy that is trained in all its weights, dropout off."""
    return copy.deepcopy(denoiser).requires_grad_(True).eval()
