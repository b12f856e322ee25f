"""How long and how to train. Durations are in images; the number of steps follows from the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from distillkit.contracts.learner import OptimizerConfig
from distillkit.counts import Count, CountOrShare, Numbers, images_of
from distillkit.power_ema import gamma_of

Interval = Literal["log", "checkpoint", "sample", "evaluate", "snapshot"]

INTERVALS: Mapping[Interval, int] = {"log": 50, "checkpoint": 16, "sample": 8, "evaluate": 8, "snapshot": 32}
"""How often each happens in a training where its interval is not given."""


FEWEST_STEPS = 20
"""Fewer are a try of the machinery, and nothing is learnt."""


_SWITCH = BeforeValidator(lambda value: {True: "on", False: "off"}[value] if isinstance(value, bool) else value)
"""YAML reads on and off as truth values."""


def _widths(sigmas: tuple[float, ...]) -> tuple[float, ...]:
    for sigma in sigmas:
        gamma_of(sigma)
    if len(set(sigmas)) != len(sigmas):
        raise ValueError("each width is kept once; name different ones, such as 0.05,0.10")
    return sigmas


class TrainingConfig(OptimizerConfig):
    """The student's optimiser and the shape of the training."""

    duration: Count = Field(
        100_000, ge=1, le=10**13, description="length of the training in images, such as 200k or 1.5M"
    )
    batch: int = Field(64, ge=1, le=10**7, description="total batch size over all processes and micro-batches")
    batch_per_device: int | None = Field(
        None, ge=1, description="most samples in one pass on one device; more are accumulated"
    )
    lr_schedule: Literal["constant", "linear", "cosine", "inverse-sqrt"] = Field(
        "constant",
        description="course of the learning rate after warm-up: constant, falling to zero, or as 1 / sqrt(images)",
    )
    lr_decay_from: CountOrShare = Field(
        "10%", description="images from which an inverse-sqrt learning rate falls, or a share of the duration: 10%"
    )
    warmup: CountOrShare = Field(
        0, description="images over which the learning rate rises from zero, or a share of the duration: 5%"
    )
    ema_halflife: CountOrShare = Field(
        50_000, description="half-life of the weights' moving average in images, or a share of the duration: 2%"
    )
    ema_rampup: float = Field(
        0.05, gt=0, le=1, description="the half-life is at most this share of the images seen so far"
    )
    ema_sigmas: Annotated[Numbers, AfterValidator(_widths)] = Field(
        (),
        max_length=8,
        description="relative widths (sigma_rel) of power-function averages that are kept beside the moving average, "
        "so that `distillkit ema` makes one of any width after the training: 0.05,0.10; none for none",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="precision of the network passes")
    gradient_checkpointing: bool = Field(False, description="recompute activations to save memory")
    float32_attention: bool = Field(False, description="compute attention in float32 under bf16 and fp16, as EDM does")
    channels_last: Annotated[Literal["auto", "on", "off"], _SWITCH] = Field(
        "auto", description="memory layout of images' feature maps: auto measures it, and is on for GPUs with --compile"
    )
    compile: Annotated[Literal["off", "network", "blocks"], _SWITCH] = Field(
        "off",
        description="what torch.compile makes graphs of: whole networks, or their repeated blocks, in a fraction of "
        "the time",
    )
    parallel: Literal["auto", "replicate", "shard", "hybrid"] = Field(
        "auto",
        description="how several processes hold networks: whole (replicate), in parts (shard), in parts within a "
        "machine (hybrid); auto is replicate where they fit",
    )
    shard_size: int | None = Field(
        None, ge=2, description="processes that share a network under hybrid; those of a machine if none"
    )
    offload_teacher: bool = Field(
        False, description="under shard and hybrid keep the teacher's parts in the CPU's memory"
    )
    log_every: Count | None = Field(
        None, ge=1, description="images between log entries; a 50th of the duration if none"
    )
    checkpoint_every: Count | None = Field(
        None, ge=1, description="images between checkpoints; a 16th of the duration if none"
    )
    keep_checkpoints: int = Field(2, ge=2, description="newest checkpoints that are kept, beside the best")
    sample_every: Count | None = Field(
        None, ge=1, description="images between sample grids; an 8th of the duration if none"
    )
    evaluate_every: Count | None = Field(
        None, ge=1, description="images between evaluations of the student; an 8th of the duration if none"
    )

    snapshot_every: Count | None = Field(
        None, ge=1, description="images between snapshots of these averages; a 32nd of the duration if none"
    )

    @model_validator(mode="after")
    def _snapshots_of_something(self) -> Self:
        if self.snapshot_every and not self.ema_sigmas:
            raise ValueError(
                "snapshot_every: of power-function averages, and there are none: add --ema-sigmas 0.05,0.10"
            )
        return self

    @property
    def snapshots(self) -> int:
        """Snapshots of power-function averages that the whole training keeps."""
        return len(self.ema_sigmas) * -(-self.steps // self.interval("snapshot"))

    @property
    def steps(self) -> int:
        """Number of optimisation steps, rounded up."""
        return -(-self.duration // self.batch)

    def passes(self, processes: int) -> list[tuple[int, int]]:
        """First sample and end of every pass of one process' part of a batch, as even as can be."""
        local = self.batch // processes
        count = max(1, -(-local // (self.batch_per_device or self.batch)))
        return list(pairwise(local * k // count for k in range(count + 1)))

    @property
    def doubts(self) -> list[str]:
        """Why a training with these settings can hardly learn, a line each."""
        found, warmup = [], images_of(self.warmup, self.duration)
        if warmup >= self.duration:
            found.append(
                f"the warm-up of {warmup:,.0f} images is as long as the training of {self.duration:,}: the learning "
                f"rate ends at {self.lr * self.duration / warmup:.2g} of {self.lr:.2g}; --warmup 5% is usual"
            )
        if self.steps < FEWEST_STEPS:
            found.append(
                f"{self.duration:,} images are {self.steps} {'step' if self.steps == 1 else 'steps'} of "
                f"{self.batch}, too few to learn from; use a longer --duration or a smaller --batch"
            )
        return found

    @property
    def checkpoint_copies(self) -> int:
        """Checkpoints on the disk at most: those that are kept, the best beside them, one more while it is written."""
        return self.keep_checkpoints + 2

    def divided(self, shares: Sequence[float]) -> list[tuple[int, int]]:
        """First step and end of every stage, by its share of the duration."""
        cuts = [round(self.steps * sum(shares[:k]) / sum(shares)) for k in range(len(shares) + 1)]
        return list(pairwise(cuts))

    def interval(self, kind: Interval) -> int:
        """Whole number of steps between logs, checkpoints, sample grids or evaluations, at least one."""
        images = getattr(self, f"{kind}_every") or self.duration / INTERVALS[kind]
        return max(1, round(images / self.batch))
