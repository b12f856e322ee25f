"""The mean of gradients over processes, sent in buckets while the backward pass still runs.

torch's DistributedDataParallel does the same for a module whose forward passes it sees. Here several networks are
evaluated several times in a step, some frozen, and by more ways than their forward, so that what is sent follows from
the parameters alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import ref

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distillkit.errors import DistillkitError

BUCKET_BYTES = 25 * 2**20
"""What torch's own buckets hold: large enough for the network's full speed, small enough to begin early."""


class Buckets:
    """Averages the gradients of parameters over the processes of a group.

    Buckets are filled in the reverse order of the parameters, which is about the order in which gradients come, and are
    sent in that order by every process. A parameter without a gradient is sent as zeros with a flag, so that no process
    waits for another that had one.

    Args:
        parameters: of which those that are trained count.
        processes: of the group.
        group: the default group if none.
        bucket_bytes: most in one bucket, but for a parameter that is larger.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], processes: int, group: Any = None, *,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:  # fmt: skip
        self.parameters = list(parameters)
        self.processes, self.group = processes, group
        self._buckets: list[_Bucket] = []
        self._place: dict[nn.Parameter, _Bucket] = {}
        self._sent, self._sending = 0, False
        self._handles: list[Any] = []
        if processes == 1:
            return
        trained = [p for p in self.parameters if p.requires_grad]
        self._buckets = [_Bucket(chosen) for chosen in _grouped(trained[::-1], bucket_bytes)]
        # The parameters outlive this object, and must not keep it.
        mine = ref(self)
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                self._place[parameter] = bucket
                self._handles.append(parameter.register_post_accumulate_grad_hook(partial(_ready, mine)))

    def close(self) -> None:
        """Remove the hooks from the parameters."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def passing(self, *, last: bool) -> Iterator[None]:
        """A backward pass; in the last of an update buckets are sent as they fill, and the rest at its end."""
        if not last or not self._buckets:
            yield
            return
        for bucket in self._buckets:
            bucket.missing = set(bucket.parameters)
        self._sent, self._sending = 0, True
        try:
            yield
        finally:
            self._sending = False
        self._send(whole=False)

    def average(self) -> None:
        """Wait for what was sent, and put the means in the place of the gradients.

        Raises:
            DistillkitError: where no backward pass was the last of the update.
        """
        if self._buckets and not self._sent:
            raise DistillkitError("gradients are to be averaged, and no backward pass was said to be the last")
        for bucket in self._buckets:
            bucket.receive(self.processes)
        self._sent = 0

    def ready(self, parameter: nn.Parameter) -> None:
        """A parameter's gradient is complete; called within the backward pass.

        Raises:
            DistillkitError: where it was thought to be complete before.
        """
        if not self._sending:
            return
        bucket = self._place[parameter]
        if bucket.work is not None:
            raise DistillkitError(
                "a parameter was given its gradient twice in one backward pass, as reentrant gradient checkpointing "
                "does; use checkpoints with use_reentrant=False"
            )
        bucket.missing.discard(parameter)
        if not bucket.missing:
            self._send(whole=True)

    def _send(self, *, whole: bool) -> None:
        """Send the next buckets in turn; while they are `whole`, or all that are left."""
        while self._sent < len(self._buckets) and not (whole and self._buckets[self._sent].missing):
            self._buckets[self._sent].send(self.group)
            self._sent += 1


def _ready(buckets: ref[Buckets], parameter: nn.Parameter) -> None:
    found = buckets()
    if found is not None:
        found.ready(parameter)


class _Bucket:
    """Some parameters of one kind, whose gradients travel together."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        # Without gaps, and in the parameter's own order in memory.
        self.strides = [torch.empty_like(p, device="meta").stride() for p in parameters]
        self.missing: set[nn.Parameter] = set()
        self.work: Any = None
        self.flat, self.views, self.lacking = torch.empty(0), list[Tensor](), list[int]()

    def send(self, group: Any) -> None:
        """Copy the gradients side by side, each laid out in memory as its parameter is, and send them."""
        sizes, first = [p.numel() for p in self.parameters], self.parameters[0]
        total = sum(sizes)
        # After them a flag for each parameter: how many processes have a gradient of it.
        self.flat = torch.empty(total + len(sizes), dtype=first.dtype, device=first.device)
        pieces = self.flat[:total].split(sizes)
        self.views = [
            piece.as_strided(p.shape, stride, piece.storage_offset())
            for piece, p, stride in zip(pieces, self.parameters, self.strides, strict=True)
        ]
        self.lacking = [k for k, p in enumerate(self.parameters) if p.grad is None]
        self.flat[total:].fill_(1)
        for k in self.lacking:
            self.views[k].zero_()
            self.flat[total + k] = 0
        there = [(p, p.grad, view) for p, view in zip(self.parameters, self.views, strict=True) if p.grad is not None]
        if there:
            torch._foreach_copy_([view for _, _, view in there], [gradient for _, gradient, _ in there])
        for parameter, _, view in there:
            # The bucket is the gradients' memory from here on, and what they were in is free.
            parameter.grad = view
        self.work = dist.all_reduce(self.flat, group=group, async_op=True)

    def receive(self, processes: int) -> None:
        """Every parameter has its mean from here on."""
        self.work.wait()
        total = sum(view.numel() for view in self.views)
        self.flat[:total].mul_(1 / processes)
        # Only where this process lacks a gradient does it matter whether others have one: a device that is waited for.
        for k in self.lacking:
            if self.flat[total + k].item():
                self.parameters[k].grad = self.views[k]
        self.work, self.flat, self.views, self.lacking = None, torch.empty(0), [], []


def _grouped(parameters: Sequence[nn.Parameter], most: int) -> Iterator[list[nn.Parameter]]:
    """Runs of parameters of one dtype and device, of at most so many bytes or one parameter."""
    chosen: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        bytes_ = parameter.numel() * parameter.element_size()
        same = not chosen or (parameter.dtype, parameter.device) == (chosen[0].dtype, chosen[0].device)
        if chosen and (not same or size + bytes_ > most):
            yield chosen
            chosen, size = [], 0
        chosen.append(parameter)
        size += bytes_
    if chosen:
        yield chosen
