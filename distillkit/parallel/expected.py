"""What a training holds on every device and sends in every step, by formula: for plans, before anything is loaded.

N devices, of which S share a network (replicate 1, shard N, hybrid those of a machine), in N / S copies. For a network
with weights W, gradients G and moments M in bytes, of which W, G, M / S are held by each:

- all-gather: a pass sends (S - 1) / S of W from each device, and its way back once more, since blocks are freed after
  the way there;
- reduce-scatter: an update sends (S - 1) / S of G;
- all-reduce: an update sends 2 (C - 1) / C of G / S among the C = N / S copies, as a ring does. What is held whole
  under every strategy has N copies.

As much is received as is sent. Where a step has several micro-batches, blocks that one loss evaluates twice send their
gradients twice, which is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distillkit.errors import UsageError

StrategyName = Literal["replicate", "shard", "hybrid"]
PREFETCHED = 2
"""Blocks that are whole at one time: the one that is computed and the next, which is on its way."""


@dataclass(frozen=True)
class Spread:
    """A strategy on so many devices.

    Args:
        devices: of the job.
        sharing: of those, how many share a network.

    Raises:
        UsageError: where the devices cannot be divided so.
    """

    name: StrategyName
    devices: int
    sharing: int

    def __post_init__(self) -> None:
        if self.devices % self.sharing:
            raise UsageError(f"{self.devices} devices cannot be divided into groups of {self.sharing}")

    @classmethod
    def of(cls, name: StrategyName, devices: int, machine: int) -> Spread:
        """By its name; `machine` devices share a network under hybrid."""
        return cls(name, devices, {"replicate": 1, "shard": devices, "hybrid": machine}[name])

    @property
    def copies(self) -> int:
        """Of every network."""
        return self.devices // self.sharing


@dataclass(frozen=True)
class Passes:
    """Passes through a network in a step, each of one micro-batch.

    Args:
        forward: all. backward: those that have a way back.
    """

    forward: float = 0.0
    backward: float = 0.0


@dataclass(frozen=True)
class Tensors:
    """Bytes of one part of a network.

    Args:
        weights: of all. gradients, moments: of those that are trained.
    """

    weights: float = 0.0
    gradients: float = 0.0
    moments: float = 0.0


@dataclass(frozen=True)
class Network:
    """A network of a training.

    Args:
        parts: what may be held in parts. whole: what every device holds whole: heads, autoencoders, text encoders.
        gathered: bytes that one pass gathers where it is in parts: its weights in the type in which they are sent.
        reduced: bytes of gradients that one update averages, in the type in which they are sent.
        block: bytes of the largest block that is gathered at once.
        passes: of one micro-batch each, in a step.
        updates: in a step, 0 for what is not trained.
    """

    name: str
    parts: Tensors = Tensors()
    whole: Tensors = Tensors()
    gathered: float = 0.0
    reduced: float = 0.0
    block: float = 0.0
    passes: Passes = Passes()
    updates: float = 0.0


@dataclass(frozen=True)
class Expected:
    """What one device holds, and sends in a step, in bytes.

    Args:
        held: of networks and their training. gathered: blocks that are whole while they are computed.
        activations: of one pass.
    """

    held: Tensors
    gathered: float
    activations: float
    all_gather: float
    reduce_scatter: float
    all_reduce: float

    @property
    def memory(self) -> float:
        held = self.held
        return held.weights + held.gradients + held.moments + self.gathered + self.activations

    @property
    def sent(self) -> float:
        """As much is received."""
        return self.all_gather + self.reduce_scatter + self.all_reduce


def expected(
    networks: Sequence[Network], spread: Spread, *, micro_batches: int = 1, activations: float = 0.0
) -> Expected:
    """By the formulas above.

    Args:
        micro_batches: passes of which a step is made. While gradients of several are added up they stay whole.
        activations: bytes of one pass on one device.
    """
    share, several = spread.sharing, micro_batches > 1
    held = Tensors(
        sum(n.parts.weights / share + n.whole.weights for n in networks),
        sum(n.parts.gradients / (1 if several else share) + n.whole.gradients for n in networks),
        sum(n.parts.moments / share + n.whole.moments for n in networks),
    )
    # One network is evaluated at a time.
    block = max((n.block for n in networks), default=0.0) if share > 1 else 0.0
    passes = micro_batches * sum(n.gathered * (n.passes.forward + n.passes.backward) for n in networks)
    parts, whole = sum(n.reduced * n.updates for n in networks), sum(n.whole.gradients * n.updates for n in networks)
    return Expected(
        held,
        PREFETCHED * block,
        activations,
        all_gather=_others(share) * passes,
        reduce_scatter=_others(share) * parts,
        all_reduce=2 * (_others(spread.copies) * parts / share + _others(spread.devices) * whole),
    )


def _others(count: int) -> float:
    """The share of a whole that others hold, of so many."""
    return (count - 1) / count
