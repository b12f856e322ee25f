"""How long and how to train. Durations are in images; the number of steps follows from the batch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from distillkit.contracts.learner import OptimizerConfig

_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}


def parse_count(value: Any) -> Any:
    """'200k' -> 200000, '1.5M' -> 1500000; other values pass through to pydantic."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([0-9][0-9_]*\.?[0-9]*)\s*([kKmMbB]?)\s*", value)):
        return round(float(match[1].replace("_", "")) * _UNITS[match[2].lower()])
    return value


Count = Annotated[int, BeforeValidator(parse_count)]
"""A number of images; text such as '200k' or '1.5M' is understood."""


class TrainingConfig(OptimizerConfig):
    """The student's optimiser and the shape of the training."""

    duration: Count = Field(100_000, ge=1, description="length of the training in images, such as 200k or 1.5M")
    batch: int = Field(64, ge=1, description="total batch size over all processes and micro-batches")
    batch_per_device: int | None = Field(
        None, ge=1, description="most samples in one pass on one device; more are accumulated"
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="course of the learning rate after warm-up: constant, or falling to zero"
    )
    warmup: Count = Field(0, ge=0, description="images over which the learning rate rises from zero")
    ema_halflife: Count = Field(50_000, ge=0, description="half-life of the weights' moving average, in images")
    ema_rampup: float = Field(
        0.05, gt=0, le=1, description="the half-life is at most this share of the images seen so far"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="precision of the network passes")
    gradient_checkpointing: bool = Field(False, description="recompute activations to save memory")
    float32_attention: bool = Field(False, description="compute attention in float32 under bf16 and fp16, as EDM does")
    channels_last: bool = Field(False, description="keep feature maps channels-last, which recent GPUs prefer")
    compile: bool = Field(False, description="compile the networks with torch.compile")
    log_every: Count = Field(2_000, ge=1, description="images between log entries")
    checkpoint_every: Count = Field(20_000, ge=1, description="images between checkpoints")
    keep_checkpoints: int = Field(2, ge=2, description="newest checkpoints that are kept")
    sample_every: Count = Field(20_000, ge=1, description="images between sample grids")
    evaluate_every: Count = Field(50_000, ge=1, description="images between evaluations of the student")

    @property
    def steps(self) -> int:
        """Number of optimisation steps, rounded up."""
        return -(-self.duration // self.batch)

    def in_steps(self, images: int) -> int:
        """An interval in images as a whole number of steps, at least one."""
        return max(1, round(images / self.batch))
