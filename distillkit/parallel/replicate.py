"""Every process holds every network whole; gradients are averaged while the backward pass still runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from distillkit.parallel.buckets import Buckets
from distillkit.parallel.strategy import Gradients, Strategy


class Replicate(Strategy):
    """Data parallelism: whole networks, and means of gradients."""

    name = "replicate"

    def building(self) -> AbstractContextManager[None]:
        return nullcontext()

    def settle(self, modules: Sequence[nn.Module]) -> None:
        # Whole networks are read by every process.
        pass

    def spread(self, module: nn.Module, *, in_steps: bool = False, offload: bool = False) -> None:
        module.to(self.device)

    def gradients(self, module: nn.Module) -> Gradients:
        return Replicated(module.parameters(), self.processes)

    def uneven(self) -> AbstractContextManager[None]:
        return nullcontext()

    def gather(self, tensors: nn.Module | Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        # Nothing is sent, and the others may look at their own.
        yield from (tensors.state_dict() if isinstance(tensors, nn.Module) else tensors).items()

    def scatter(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        # All have read the same.
        module.load_state_dict(tensors)


class Replicated(Buckets, Gradients):
    """Gradients of whole parameters."""

    def clip(self, most: float) -> Tensor:
        return nn.utils.clip_grad_norm_(self.parameters, most)
