"""Sources: where a step's data come from. Each serves one type of batch, which objectives name in their `needs`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.random import Indices, SampleRNG
from distillkit.contracts.teacher import Teacher
from distillkit.contracts.text import PromptList

Batch = TypeVar("Batch")
Served_co = TypeVar("Served_co", covariant=True)


@dataclass(frozen=True)
class Pairs:
    """Noise-image pairs of the teacher's ODE: noise z ~ N(0, I) and sample y, both (B, ...), and conditions."""

    noise: Tensor
    sample: Tensor
    condition: Condition


@dataclass(frozen=True)
class Images:
    """Real data as the teacher's samples (B, ...), images in [-1, 1] for a pixel model, and their conditions."""

    sample: Tensor
    condition: Condition


class Samples:
    """Named in `needs` by what reads `step.samples`, the student's output on fresh noise."""


class PairSamples:
    """Named in `needs` by what reads `step.pair_samples`, the student's output on the pairs' noise."""


def batch_types(needs: frozenset[type]) -> frozenset[type]:
    """The types of batches behind what is needed: samples are the student's own, and pair samples are made of pairs."""
    return needs - {Samples, PairSamples} | ({Pairs} if PairSamples in needs else set())


class Batches(Protocol[Served_co]):
    """An opened source: batches that depend on (seed, step, sample index) alone."""

    def batch(self, rng: SampleRNG, step: int, indices: Indices) -> Served_co: ...


class SourceConfig(BaseModel):
    """Base of a source's settings; fields with descriptions become options `--NAME-FIELD`."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class SourceJob:
    """The job that a source works for.

    Args:
        device: where batches go.
        rank: this process.
        world: the number of processes; what is made is shared among them by number.
        say: one line for the user.
        task: `with task(title, total, unit) as bar: bar.advance(n)`, progress of something long.
        should_stop: a signal's number once one has come, else 0: stop at the next safe place by `interrupted`.
        interrupted: makes the exception to raise then, from what was kept.
        barrier: waits for all processes.
        folder: of the run, for what belongs to this run alone.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    say: Callable[[str], None] = lambda text: None
    task: Any = None
    should_stop: Callable[[], int] = lambda: 0
    interrupted: Callable[[str], Exception] = RuntimeError
    barrier: Callable[[], None] = lambda: None
    folder: Path | None = None


class Source(ABC, Generic[Batch]):
    """A kind of data that steps can read. A plugin offers its own by the hook `distillkit_sources`.

    Attributes:
        name: of its section in configurations and of its options, such as "pairs".
        batch_type: what it serves, and what `needs` names.
        Config: its settings. A field `guidance` that is None takes the recipe's, so that what a method reads of its
            teacher is guided as the teacher is, unless another weight is asked for.
        draws: samples that the training draws; None where that is not known.
        batch: samples of one of its steps, of all processes.
        job: the job that it works for, where that is known before it is opened: for progress of what has to be read
            before the run is begun.

    Args:
        teacher: whose samples' shape, conditioner and codec it follows.
        config: an instance of `Config`.
    """

    name: ClassVar[str]
    batch_type: ClassVar[type]
    Config: ClassVar[type[SourceConfig]] = SourceConfig
    draws: int | None = None
    batch: int = 1
    job: SourceJob | None = None

    def __init__(self, teacher: Teacher, config: Any) -> None:
        self.teacher, self.config = teacher, config

    @abstractmethod
    def open(self, job: SourceJob) -> Batches[Batch]:
        """Make what is missing, then open it. Called once by every process.

        Raises:
            UsageError, DistillkitError: when it cannot be had, or does not fit the teacher.
        """

    def check(self) -> None:
        """Refuse early, before anything is written or made, what `open` would refuse.

        Raises:
            UsageError, DistillkitError: as `open`.
        """

    @property
    def cost(self) -> int:
        """Teacher evaluations that its data cost in all, whether they are made now or found."""
        return 0

    @property
    def guidance(self) -> float:
        """Guidance weight of the teacher that its data hold."""
        return 1.0

    @property
    def fingerprint(self) -> str:
        """Hash of what it reads beside its settings and the teacher, such as files: a run on other data is another."""
        return ""

    @property
    def prompts(self) -> PromptList | None:
        """Prompts that come with its data, such as captions, which a teacher that lacks prompts is trained with."""
        return None

    def plan(self) -> SourcePlan:
        """What opening it would take; nothing is made or downloaded."""
        return SourcePlan()

    @classmethod
    @abstractmethod
    def synthetic(cls, teacher: Teacher, device: torch.device) -> Batches[Batch]:
        """Batches of noise in the shapes of the real ones: for plans, benchmarks and conformance checks."""


@dataclass(frozen=True)
class SourcePlan:
    """What a source would take.

    Args:
        summary: one line for people: what it serves, from where.
        evaluations: of the teacher that are still to do.
        disk_bytes: that are still to be written.
        memory_bytes: of a process while it is open.
    """

    summary: str = ""
    evaluations: int = 0
    disk_bytes: int = 0
    memory_bytes: int = 0
