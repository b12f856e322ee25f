"""The seam between a training and how its networks are spread over processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
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

    Args:
        processes: that share a batch.
        device: of this process.

    Attributes:
        name: as `--parallel` has it.
        spreads: whether a network is held in parts; a pass through it is then one that all processes make.
    """

    name: str
    spreads: bool = False

    def __init__(self, processes: int, device: torch.device) -> None:
        self.processes, self.device = processes, device

    @abstractmethod
    def building(self) -> AbstractContextManager[None]:
        """While networks are copied that are spread later."""

    @abstractmethod
    def settle(self, modules: Sequence[nn.Module]) -> None:
        """Before any of them is spread: find out whether all processes have all weights. Where one lacks some (they are
        on "meta"), everything that is spread from here on is as the first process has it, which has them all."""

    @abstractmethod
    def spread(self, module: nn.Module, *, in_steps: bool = False, offload: bool = False) -> None:
        """Bring a network, which every process holds whole and alike or the first alone, to the devices, in place.

        Args:
            in_steps: whether it is evaluated in steps of a training alone, and so in their precision.
            offload: whether what is held in parts stays in the CPU's memory.
        """

    @abstractmethod
    def gradients(self, module: nn.Module) -> Gradients:
        """The gradients of a module that one optimiser updates."""

    @abstractmethod
    def uneven(self) -> AbstractContextManager[None]:
        """While processes evaluate networks without gradients and not equally often, or one of them alone."""

    @abstractmethod
    def gather(self, tensors: nn.Module | Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Names and whole tensors, in the first process; the others take part and are given none. One at a time is
        whole.

        Args:
            tensors: a module for its state, or tensors that are spread as its parameters are.
        """

    @abstractmethod
    def scatter(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Give a module the state whose whole tensors the first process has; those of others are not looked at."""


def is_spread(module: nn.Module) -> bool:
    """Whether a network is held in parts."""
    return any(hasattr(parameter, "_local_tensor") for parameter in module.parameters())


def local_of(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; the tensor itself where it is whole. Shares its memory."""
    part: Tensor = getattr(tensor, "_local_tensor", tensor)
    return part
