"""The networks of a training as the formulas of `distillkit.parallel.expected` take them, by their sizes alone: weights
may be on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from distillkit.contracts.denoiser import Denoiser, own_parameters
from distillkit.dtypes import HALF
from distillkit.engine.config import TrainingConfig
from distillkit.engine.networks import Networks
from distillkit.engine.optimization import merged
from distillkit.engine.optimizers import moment_bytes
from distillkit.parallel.expected import Network, Passes, Tensors
from distillkit.parallel.units import outermost, units_of


def networks_of(networks: Networks, config: TrainingConfig, passes: Mapping[str, Passes]) -> list[Network]:
    """Every network of a training. Denoisers are held in parts where a strategy does so, all else whole; those that are
    only evaluated in steps travel in the precision of passes, with gradients in float32.

    Args:
        passes: of one micro-batch each, in a step, by the network's name.
    """
    recipe, learners = networks.recipe, {learner.name for learner in networks.recipe.learners}
    updates = {"student": 1 / recipe.student_every} | {one.name: 1 / one.every for one in recipe.learners}
    found = []
    for name, module in {**networks.changed, **networks.given}.items():
        own = networks.optimised.get(name)
        found.append(
            network_of(
                name, module, passes.get(name, Passes()), updates.get(name, 0.0),
                optimizer=merged(config, own).optimizer if own else config.optimizer,
                half=HALF.get(config.precision) if name in learners else None,
            )
        )  # fmt: skip
    frozen = networks.teacher.codec.weight_bytes + sum(one.frozen_bytes for one in recipe.objectives)
    return [*found, Network("the autoencoder and perceptual distances", whole=Tensors(frozen))] if frozen else found


def network_of(
    name: str, module: nn.Module, passes: Passes, updates: float, *, optimizer: str, half: torch.dtype | None = None
) -> Network:
    """One network.

    Args:
        updates: in a step.
        optimizer: of what it trains.
        half: type in which its parts are sent; their own if none.
    """
    denoisers = list(outermost(module))
    inside = {id(p): p for denoiser in denoisers for p in denoiser.parameters()}
    own = own_parameters(module)
    parts = [p for p in own if id(p) in inside]
    return Network(
        name,
        _tensors(parts, optimizer),
        _tensors((p for p in own if id(p) not in inside), optimizer),
        # What adapters lie beside is gathered with them, and held once, as the teacher's.
        gathered=sum(p.numel() * (half.itemsize if half else p.element_size()) for p in inside.values()),
        reduced=sum(p.numel() * (4 if half else p.element_size()) for p in parts if p.requires_grad),
        block=max((_largest_block(one, half) for one in denoisers), default=0),
        passes=passes,
        updates=updates,
    )


def _tensors(parameters: Iterable[nn.Parameter], optimizer: str) -> Tensors:
    weights = gradients = moments = 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        weights += size
        if parameter.requires_grad:
            gradients += size
            moments += moment_bytes(parameter, optimizer)
    return Tensors(weights, gradients, moments)


def _largest_block(denoiser: Denoiser, half: torch.dtype | None) -> int:
    """Bytes of the largest block that is gathered at once."""
    return max(
        sum(p.numel() * (half.itemsize if half else p.element_size()) for p in own) for _, own in _blocks(denoiser)
    )


def _blocks(denoiser: Denoiser) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """What is gathered at one time, with the weights that are; what lies in no block is one more, of the network."""
    seen = set[int]()
    for block in (*units_of(denoiser), denoiser):
        own = [p for p in block.parameters() if id(p) not in seen]
        seen |= {id(p) for p in own}
        yield block, own


class PassMeter:
    """Counts passes through networks, and those that have a way back, by role. One that ends at a layer counts by the
    weights of the blocks that it came to."""

    def __init__(self) -> None:
        self.counts: dict[str, Passes] = {}

    @contextmanager
    def watch(self, roles: Mapping[str, Denoiser]) -> Iterator[None]:
        """Count while the context lasts."""
        handles = []
        for role, denoiser in roles.items():
            blocks = list(_blocks(denoiser))
            total = sum(p.numel() for _, own in blocks for p in own)
            for block, own in blocks:
                share = sum(p.numel() for p in own) / total
                handles.append(block.register_forward_pre_hook(self._counter(role, share, own), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _counter(self, role: str, share: float, own: list[nn.Parameter]) -> Any:
        def count(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            back = torch.is_grad_enabled() and any(
                isinstance(one, Tensor) and one.requires_grad for one in (*args, *named.values(), *own)
            )
            before = self.counts.get(role, Passes())
            self.counts[role] = Passes(before.forward + share, before.backward + share * back)

        return count


def activation_bytes(network: nn.Module, evaluate: Callable[[], Any]) -> int:
    """Bytes that a pass keeps for the way back, each storage once. On the meta device nothing is computed, and
    attention keeps what fused attention does.

    Args:
        evaluate: evaluates the network, whose parameters need gradients.
    """
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, tuple[int, Any]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            # The storage is held, so that its number is not given to another one.
            kept[storage._cdata] = storage.nbytes(), storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed), _FusedOnMeta():
        evaluate()
    return sum(size for size, _ in kept.values())


class _FusedOnMeta(TorchFunctionMode):
    """Attention on the meta device, for which torch has the plain way alone, which keeps every weight."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention and args and args[0].device.type == "meta":
            return _Fused.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _Fused(torch.autograd.Function):
    """Keeps what fused attention keeps: queries, keys, values, its output, and a number a row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output
