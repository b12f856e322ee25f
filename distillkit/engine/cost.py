"""The cost of training, counted in network passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser, own_parameters, uncompiled

Layers = tuple[str, ...]

_FUSED_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, v, *_, **__: sdpa_backward_flop_count(gradient, q, k, v)
    ),
}
"""Fused attention on the CPU, of which PyTorch's counter does not know: without these it is counted as free."""


class CostMeter:
    """Counts samples through denoisers by role, in forward-equivalents.

    A backward pass costs about one forward pass for the inputs' gradients and one for the weights': an evaluation of
    a network in training counts 3, one through which gradients only pass to its input 2, one without gradient 1; where
    only some weights are trained, as in adapters, the last forward pass counts by their share of all. In
    forward mode, where every operation also computes a derivative along a direction, it counts one more. A pass that
    ends at a layer (`Denoiser.features`) counts by its share of a whole pass' floating-point operations.

    Counting is by Python numbers in forward hooks: it never waits for the device.

    Args:
        counts: so far.
        costs: forward-equivalents of one evaluation, of roles whose networks are of another size; 1 of all others.
    """

    def __init__(self, counts: Mapping[str, float] | None = None, costs: Mapping[str, float] | None = None) -> None:
        self.counts: dict[str, float] = dict(counts or {})
        self.costs = dict(costs or {})
        self._parameters: WeakKeyDictionary[Denoiser, tuple[Sequence[Tensor], float]] = WeakKeyDictionary()
        self._shares: dict[tuple[str, Layers], float] = {}
        self._partial: dict[tuple[str, Layers], tuple[float, tuple[Any, ...]]] = {}

    @property
    def total(self) -> float:
        """Forward-equivalents so far, in samples."""
        return sum(self.counts.values())

    def add(self, role: str, forward_equivalents: float) -> None:
        self.counts[role] = self.counts.get(role, 0) + forward_equivalents

    @contextmanager
    def watch(self, roles: Mapping[str, Denoiser], processes: int = 1) -> Iterator[None]:
        """Count the evaluations of these denoisers while the context lasts, on all of `processes` that share them
        evenly."""
        handles = [
            denoiser.register_forward_pre_hook(self._counter(role, self._parameters_of(denoiser), processes))
            for role, denoiser in roles.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._add_partial(roles)

    def _parameters_of(self, denoiser: Denoiser) -> tuple[Sequence[Tensor], float]:
        """Those that may be trained, and their share of all. Found once: walking through a network takes longer than
        counting in it."""
        if denoiser not in self._parameters:
            own = own_parameters(denoiser)
            every = sum(p.numel() for p in denoiser.parameters())
            self._parameters[denoiser] = own, sum(p.numel() for p in own) / max(every, 1)
        return self._parameters[denoiser]

    def _counter(self, role: str, weights: tuple[Sequence[Tensor], float], processes: int) -> Any:
        parameters, share = weights
        each = self.costs.get(role, 1.0)

        def count(module: Denoiser, args: tuple[Any, ...]) -> None:
            passes = 1.0
            if torch.is_grad_enabled():
                trained = any(p.requires_grad for p in parameters)
                passes += 1 + share if trained else int(args[0].requires_grad)
            passes += any(forward_ad.unpack_dual(x).tangent is not None for x in args[:2])
            cost = processes * len(args[0]) * passes * each
            if module.partial is None:
                self.add(role, cost)
            else:
                before, _ = self._partial.get((role, module.partial), (0, ()))
                self._partial[role, module.partial] = before + cost, args

        return count

    def _add_partial(self, roles: Mapping[str, Denoiser]) -> None:
        """Count the passes that ended early; outside of them, for a measurement is two passes more."""
        for (role, layers), (cost, args) in self._partial.items():
            share = self._shares.get((role, layers))
            if share is None:
                share = self._shares[role, layers] = partial_share(roles[role], layers, args)
            self.add(role, cost * share)
        self._partial.clear()


def flop_counter() -> FlopCounterMode:
    """Counts floating-point operations while it is entered, those of fused attention among them."""
    return FlopCounterMode(display=False, custom_mapping=_FUSED_ON_CPU)


def partial_share(denoiser: Denoiser, layers: Layers, args: tuple[Any, ...]) -> float:
    """Floating-point operations of a pass that ends at `layers` as a share of a whole one's.

    1 where operations cannot be counted: for passes under forward-mode differentiation, for networks whose operations
    the counter does not know, or that fail without their real inputs.

    Args:
        args: (x, t, condition) of such a pass, for their shapes.
    """
    training = [module for module in denoiser.modules() if module.training]
    try:
        x, t, condition = args
        inputs = _zeros(x), _zeros(t), Condition(**{name: _zeros(value) for name, value in condition.items()})
        denoiser.eval()
        # The counter does not see into compiled graphs.
        with torch.no_grad(), uncompiled(denoiser):
            with flop_counter() as part:
                denoiser.features(*inputs, layers)
            with flop_counter() as whole:
                denoiser(*inputs)
        share = part.get_total_flops() / whole.get_total_flops()
        return share if 0 < share <= 1 else 1.0
    except Exception:  # what cannot be counted is a whole pass; it is no reason to end a training
        return 1.0
    finally:
        for module in training:
            module.training = True


def _zeros(like: Tensor) -> Tensor:
    """One sample of a tensor's shape, made anew: a tensor of a differentiation that is over has no storage."""
    return torch.zeros(1, *like.shape[1:], dtype=like.dtype, device=like.device)
