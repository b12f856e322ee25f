"""The seam between a training and how its networks are spread over processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

from torch import Tensor, nn


class Gradients(ABC):
    """The gradients of one optimiser's parameters, from the first backward pass of an update to the clipped mean over
    processes."""

    @abstractmethod
    def passing(self, *, last: bool) -> AbstractContextManager[None]:
        """What a backward pass runs in.

        Args:
            last: of its update. Earlier passes add up what is accumulated and send nothing.
        """

    @abstractmethod
    def average(self) -> None:
        """After the last pass: every `grad` is the mean over processes from here on. A parameter that no process has a
        gradient of has none."""

    @abstractmethod
    def clip(self, most: float) -> Tensor:
        """Scale all gradients down to the norm `most`, taken over all parameters and processes together; returns the
        norm before, a scalar."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the parameters: another one takes over."""


class Strategy(ABC):
    """How networks are spread, and how what is spread becomes one again.

    Everything is called by all processes, in the same order.

    Attributes:
        name: as `--parallel` has it.
        processes: that share a batch.
    """

    name: str

    def __init__(self, processes: int) -> None:
        self.processes = processes

    @abstractmethod
    def gradients(self, module: nn.Module) -> Gradients:
        """The gradients of a module that one optimiser updates."""
