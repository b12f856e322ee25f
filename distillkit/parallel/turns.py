"""Passes through networks in parts that some processes make and others do not: all take part in each."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from distillkit.contracts.denoiser import Denoiser

NOTHING = -1
"""What a process asks for that has no pass to make any more."""


class Turns:
    """Before every pass the processes say which network each is about to evaluate, and up to where. All make the
    first pass that is asked for: those that did not ask for it with one sample of a process that did, and drop what
    comes out.

    Args:
        networks: in the same order on every process.
        group: of processes, on the CPU, so that no device is waited for.
    """

    def __init__(self, networks: Sequence[Denoiser], group: Any) -> None:
        self.networks, self.group = list(networks), group
        self._serving = False

    @contextmanager
    def taken(self) -> Iterator[None]:
        """While passes are made in turns; ends when every process is done."""
        handles = [
            network.register_forward_pre_hook(partial(self._ask, number), prepend=True)
            for number, network in enumerate(self.networks)
        ]
        try:
            yield
            while self._serve(NOTHING, ()):
                pass
        finally:
            for handle in handles:
                handle.remove()

    def _ask(self, number: int, network: Denoiser, args: tuple[Any, ...]) -> None:
        """Come to one's turn, before a pass."""
        wish = number
        if network.partial is not None:
            # A pass that ends at a layer gathers other blocks than a whole one.
            wish += len(self.networks) * (1 + zlib.crc32("\n".join(network.partial).encode()))
        while not self._serving and self._serve(wish, args) != wish + 1:
            pass

    @torch.no_grad()
    def _serve(self, own: int, args: tuple[Any, ...]) -> int:
        """Settle the next pass, and take part in it where it is another one than one's own; returns one more than its
        number, 0 where nobody makes a pass any more."""
        wishes = [torch.zeros((), dtype=torch.int64) for _ in range(dist.get_world_size())]
        dist.all_gather(wishes, torch.tensor(own), group=self.group)
        asked = [int(wish) for wish in wishes]
        wanted = [k for k in asked if k != NOTHING]
        if not wanted:
            return 0
        chosen = min(wanted)
        network = self.networks[chosen % len(self.networks)]
        if any(k != chosen for k in asked):
            sample: list[Any] = [None]
            if own == chosen:
                x, t, condition = args
                sample = [(x[:1].cpu(), t[:1].cpu(), condition.select(torch.tensor([0], device=x.device)).to("cpu"),
                           network.partial)]  # fmt: skip
            dist.broadcast_object_list(sample, src=asked.index(chosen), group=self.group)
            if own != chosen:
                self._join(network, *sample[0])
        return chosen + 1

    def _join(self, network: Denoiser, x: Any, t: Any, condition: Any, layers: tuple[str, ...] | None) -> None:
        device = next(iter(network.parameters())).device
        inputs = x.to(device), t.to(device), condition.to(device)
        self._serving = network.for_others = True
        try:
            if layers is None:
                network(*inputs)
            else:
                network.features(*inputs, layers)
        finally:
            self._serving = network.for_others = False
