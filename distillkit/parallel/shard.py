"""Every process holds a part of every network: FSDP2, by the blocks that a network names."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from distillkit.contracts.denoiser import Denoiser, PassEnded
from distillkit.models.weightless import is_weightless
from distillkit.parallel.buckets import Buckets
from distillkit.parallel.copies import lazily
from distillkit.parallel.first import given_memory, hand_out, named_tensors
from distillkit.parallel.groups import cpu_group
from distillkit.parallel.strategy import Gradients, Strategy, local_of
from distillkit.parallel.turns import Turns
from distillkit.parallel.units import outermost, units_of


class Shard(Strategy):
    """Denoisers in parts, everything else whole: heads and small networks are not worth a collective operation each.

    Args:
        mesh: of all processes; the last of its dimensions shares a network, the first of two holds it several times.
        half: dtype in which networks that are only evaluated in training are gathered; their gradients are averaged in
            float32. None for their own.
    """

    name = "shard"
    spreads = True

    def __init__(self, mesh: DeviceMesh, device: torch.device, half: torch.dtype | None = None) -> None:
        super().__init__(mesh.size(), device)
        self.mesh, self.half = mesh, half
        self.roots: list[Denoiser] = []
        self._from_first = False
        self._cpu = None if dist.get_backend() == "gloo" else cpu_group()

    def building(self) -> AbstractContextManager[None]:
        return lazily()

    def settle(self, modules: Sequence[nn.Module]) -> None:
        lacking = torch.tensor(int(any(map(is_weightless, modules))))
        dist.all_reduce(lacking, dist.ReduceOp.MAX, group=self._cpu)
        self._from_first = bool(lacking)

    def spread(self, module: nn.Module, *, in_steps: bool = False, offload: bool = False) -> None:
        half = self.half if in_steps else None
        # A denoiser without weights, such as one that is known exactly, is not spread.
        fresh = [
            denoiser for denoiser in outermost(module)
            if any(True for _ in denoiser.parameters()) and not any(root is denoiser for root in self.roots)
        ]  # fmt: skip
        spread_before = {id(tensor) for root in self.roots for tensor in named_tensors(root).values()}
        # What is whole now, by its names; the first process' is sent.
        whole = {
            name: tensor.detach()
            for name, tensor in (named_tensors(module).items() if self._from_first else ())
            if id(tensor) not in spread_before
        }
        units = [self._shard(denoiser, half, offload=offload) for denoiser in fresh]
        if self._from_first:
            given_memory(module, self.device, torch.device("cpu") if offload else self.device)
        for tensor in chain(module.parameters(), module.buffers()):
            if not isinstance(tensor, DTensor) and tensor.device != self.device:
                tensor.data = tensor.data.to(self.device)
        self._hand_out(named_tensors(module), whole)
        for denoiser, blocks in zip(fresh, units, strict=True):
            self._begin(denoiser, blocks, half)

    def _hand_out(self, own: Mapping[str, Tensor], whole: dict[str, Tensor]) -> None:
        """Send the first process' tensors, one at a time, and let each go."""
        first = dist.get_rank() == 0
        for name in list(whole):
            value = whole.pop(name)
            hand_out(own[name], value if first else None, self.mesh, self.device)

    def _shard(self, denoiser: Denoiser, half: torch.dtype | None, *, offload: bool) -> list[nn.Module]:
        """Put a denoiser in parts, of which there may be no values yet; returns what is gathered at one time."""
        kind = type(denoiser)
        settings: dict[str, Any] = {
            "mesh": self.mesh,
            "reshard_after_forward": True,
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=half, reduce_dtype=torch.float32 if half else None, cast_forward_inputs=False
            ),
            # On the CPU the parts are in its memory already.
            "offload_policy": CPUOffloadPolicy() if offload and self.device.type != "cpu" else OffloadPolicy(),
            "ignored_params": {p for p in denoiser.parameters() if p.ndim == 0},
        }
        units = [*units_of(denoiser), denoiser]
        for unit in units:
            unit.register_forward_hook(_own_memory, prepend=True)
            fully_shard(unit, **settings)
            unit.register_forward_hook(_end_pass, always_call=True)
        # FSDP makes a class of its own; messages and keys of caches name the network's.
        named: Any = type(denoiser)
        named.__name__, named.__qualname__, named.__module__ = kind.__name__, kind.__qualname__, kind.__module__
        return units

    def _begin(self, denoiser: Denoiser, units: Sequence[nn.Module], half: torch.dtype | None) -> None:
        """Make a denoiser in parts ready for passes."""
        # Which network is the root and in what type gradients are is settled here, where the trained parameters need
        # gradients, and not by the first pass, which may be a frozen one. Memory for the first pass is asked for here
        # too: it may be in inference mode, and no tensor made in it can ever be trained with.
        denoiser._get_fsdp_state()._lazy_init()  # type: ignore[operator]
        for unit in units:
            assert isinstance(unit, FSDPModule)
            unit.unshard()
            unit.reshard()
        if half is not None:
            _run_in(denoiser, half, self.device)
        denoiser.uneven = self.uneven  # type: ignore[method-assign]
        self.roots.append(denoiser)

    def gradients(self, module: nn.Module) -> Gradients:
        return Sharded(module, self)

    def uneven(self) -> AbstractContextManager[None]:
        return Turns(self.roots, self._cpu).taken() if self.roots else nullcontext()

    @torch.no_grad()
    def gather(self, tensors: nn.Module | Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        first = dist.get_rank() == 0
        for name, tensor in (tensors.state_dict() if isinstance(tensors, nn.Module) else tensors).items():
            if isinstance(tensor, DTensor):
                whole = cast(DTensor, tensor.to(self.device)).full_tensor()
                if first:
                    yield name, whole.cpu()
            elif first:
                yield name, tensor.to("cpu", copy=True)

    @torch.no_grad()
    def scatter(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        first = dist.get_rank() == 0
        for name, own in module.state_dict().items():
            hand_out(own, tensors[name] if first else None, self.mesh, self.device)


class Sharded(Gradients):
    """Gradients of networks in parts, which FSDP averages, and of whole parameters beside them."""

    def __init__(self, module: nn.Module, strategy: Shard) -> None:
        self.parameters, self.mesh = [*module.parameters()], strategy.mesh
        self.roots = [m for m in outermost(module) if isinstance(m, FSDPModule)]
        self.rest = Buckets([p for p in self.parameters if not isinstance(p, DTensor)], strategy.processes)

    @contextmanager
    def passing(self, *, last: bool) -> Iterator[None]:
        for root in self.roots:
            root.set_requires_gradient_sync(last)
        with self.rest.passing(last=last):
            yield

    def average(self) -> None:
        self.rest.average()

    @torch.no_grad()
    def clip(self, most: float) -> Tensor:
        spread = [local_of(p.grad) for p in self.parameters if isinstance(p.grad, DTensor)]
        whole = [p.grad for p in self.parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
        # Every process has other rows of what is spread, and the same of the rest.
        total = _squares(spread, self.mesh.device_type)
        dist.all_reduce(total, group=self.mesh.get_group(self.mesh.ndim - 1))
        norm = (total + _squares(whole, self.mesh.device_type)).sqrt()
        factor = (most / (norm + 1e-6)).clamp(max=1.0)
        for gradients in (spread, whole):
            if gradients:
                torch._foreach_mul_(gradients, factor)
        return norm

    def close(self) -> None:
        self.rest.close()


def _squares(tensors: Sequence[Tensor], device: str) -> Tensor:
    """The sum of squares of all numbers, in float32 or wider."""
    if not tensors:
        return torch.zeros((), device=device)
    norms = torch.stack(torch._foreach_norm(list(tensors)))
    return norms.to(torch.promote_types(norms.dtype, torch.float32)).square().sum()


def _own_memory(unit: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """What a block gives, out of the memory of something larger: FSDP hears by a hook on it that gradients come, which
    a change in place of a view would drop."""
    if isinstance(output, tuple):
        return tuple(_own_memory(unit, args, part) for part in output)
    if isinstance(output, Tensor) and output.requires_grad and output._base is not None:
        return output.clone()
    return output


def _end_pass(unit: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Where a pass ends at a layer within a block, let FSDP end it as a pass that comes to the block's end, with the
    features as what it gives: the block is freed, and gathered anew on the way back."""
    ended = sys.exc_info()[1]
    if isinstance(ended, PassEnded):
        assert isinstance(unit, FSDPModule)
        unit._get_fsdp_state()._post_forward(unit, args, ended.features)


def _run_in(denoiser: Denoiser, half: torch.dtype, device: torch.device) -> None:
    """Make passes outside of a training step run in the precision that its weights are gathered in."""
    forward = denoiser.forward

    def guarded(*args: Any, **named: Any) -> Tensor:
        if torch.is_autocast_enabled(device.type):
            return forward(*args, **named)
        with torch.autocast(device.type, dtype=half):
            return forward(*args, **named)

    denoiser.forward = guarded  # type: ignore[method-assign]
