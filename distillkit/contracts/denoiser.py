"""The one convention of the core: a denoiser D(x_t, t, condition) -> x0 that carries its noise schedule."""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor, nn

from distillkit.contracts.adapter import WRAPPED, AdapterConfig, Base
from distillkit.contracts.condition import Condition
from distillkit.contracts.schedule import Schedule
from distillkit.errors import DistillkitError


class Denoiser(nn.Module, ABC):
    """D(x_t, t, condition) -> x0: the expectation of the clean sample given x_t = alpha(t) x0 + sigma(t) n.

    Models that predict noise, v or a velocity become denoisers where they are built, so that every method is written
    once.

    Attributes:
        schedule: alpha, sigma and the family's own grid of times.
        description: {"kind": "package:Name", "arguments": {...}}, from which `build_denoiser` makes it anew; set there.
        partial: the layers that the present pass ends at, or None for a whole pass; what counts evaluations reads it.
        for_others: whether the present pass is made for other processes alone, which hold parts of the network, and
            what comes out is dropped; it is not counted.
        base: weights that it has in common with others: they are neither copied with it nor part of its `state_dict`.
        adapter: what is trained beside these.
    """

    schedule: Schedule
    description: Mapping[str, Any] | None = None
    partial: tuple[str, ...] | None = None
    for_others: bool = False
    base: Base | None = None
    adapter: AdapterConfig | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """As of any module, but that weights of the base are their own copies."""
        if self.base is not None:
            memo |= self.base.memo
        module: Any = self
        made: Any = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(module.__getstate__(), memo))
        return made

    def _common(self) -> Iterator[tuple[str, Tensor]]:
        """Names of weights here, and the weights, that are its base's and that a state dict would hold."""
        if self.base is None:
            return
        for name, tensor in super().state_dict(keep_vars=True).items():
            if tensor in self.base or name.replace(WRAPPED, "") in self.base.buffers:
                yield name, tensor

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The weights by name, those of its base left out."""
        found: dict[str, Any] = super().state_dict(*args, **kwargs)
        for name, _ in self._common():
            found.pop(f"{kwargs.get('prefix', '')}{name}", None)
        return found

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str],
        unexpected: list[str], errors: list[str],
    ) -> None:  # fmt: skip
        for name, tensor in self._common():
            if (given := state_dict.get(f"{prefix}{name}")) is not None and given is not tensor:
                errors.append(f"{prefix}{name} is shared with other networks, and cannot be loaded into one")
            # It is its own value: nothing is missing, and nothing is written.
            state_dict[f"{prefix}{name}"] = tensor
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Denoise x (B, ...) at times t (B,); returns x0 of x's shape."""

    @property
    def takes_guidance(self) -> bool:
        """Whether the network takes a guidance weight as an input, the condition's field `guidance` (B,): w of uncond +
        w (cond - uncond)."""
        return bool(getattr(getattr(self, "model", None), "takes_guidance", False))

    def loss_weight(self, t: Tensor) -> Tensor:
        """What |D - x0|^2 weighs in the loss that this network was trained with, (B,): 1 / ratio^2, the loss of the
        predicted noise, unless a family says otherwise."""
        return self.schedule.ratio(t) ** -2

    def log_variance(self, t: Tensor) -> Tensor | None:
        """u(t) (B,), by whose exponential the weighted loss of a teacher's training is divided, and which is added to
        it: the logarithm of the loss that is expected at t, learnt beside the network (Karras et al. 2024, arXiv
        2312.02696, Eq. 21). None where a family has none, and the loss is weighted by `loss_weight` alone."""
        return None

    def layer(self, name: str) -> nn.Module:
        """A layer to take features from: "bottleneck", the narrowest, or a submodule by its dotted name.

        Raises:
            DistillkitError: when there is none of that name.
        """
        if name == "bottleneck":
            found = getattr(getattr(self, "model", None), "bottleneck", None)
        else:
            found = dict(self.named_modules()).get(name)
        if not isinstance(found, nn.Module):
            raise DistillkitError(f"the network {type(self).__name__} has no layer {name!r} to take features from")
        return found

    def layers_at(self, depths: Sequence[float]) -> list[str]:
        """Names of the blocks at these depths, shares in [0, 1] of the network's blocks in the order of evaluation
        (`model.blocks`), each once; the bottleneck alone where a network has no such list."""
        blocks = getattr(getattr(self, "model", None), "blocks", None)
        if not blocks:
            return ["bottleneck"]
        names = {id(module): name for name, module in self.named_modules()}
        chosen = sorted({round(depth * (len(blocks) - 1)) for depth in depths})
        return [names[id(blocks[k])] for k in chosen]

    def units(self) -> Sequence[nn.Module]:
        """The blocks that are held, gathered and freed one at a time where a network is spread over devices; one may
        lie within another, and what is in none is one block more. Each is evaluated by its own call, and nobody reads
        its weights past it.

        By default what the network names (`model.units`), what a network of diffusers must not split, or its blocks
        (`model.blocks`).
        """
        own = getattr(getattr(self, "model", None), "units", None)
        if own is not None:
            return list(own)
        inner = list(self.modules())
        whole = {name for module in inner for name in getattr(module, "_no_split_modules", None) or ()}
        if found := [module for module in inner if type(module).__name__ in whole]:
            return found
        return [block for module in inner for block in getattr(module, "blocks", None) or ()]

    def time_layers(self) -> Sequence[nn.Module]:
        """The first layers of the embedded time, (B, K) -> (B, C) with C their `out_features`: beside them a second
        time can be embedded.

        Raises:
            DistillkitError: when the network names none (`model.time_layers`).
        """
        found = list(getattr(getattr(self, "model", None), "time_layers", ()))
        if not found:
            raise DistillkitError(
                f"the network {type(getattr(self, 'model', self)).__name__} cannot take a second time: it does not "
                "name the layers that embed the first (a property `time_layers`)"
            )
        return found

    def feature(self, output: Any, x: Tensor) -> Tensor:
        """What `features` gives of a layer's output for samples x (B, ...): the first of several, unless the network
        knows better (`model.feature`; transformers give the picture's tokens as a map)."""
        chosen = getattr(getattr(self, "model", None), "feature", None)
        if chosen is not None:
            return chosen(output, x)
        return output[0] if isinstance(output, tuple) else output

    def features(
        self, x: Tensor, t: Tensor, condition: Condition, layers: Sequence[str] = ("bottleneck",)
    ) -> list[Tensor]:
        """The outputs of `layers` for x (B, ...) at t (B,), in the order asked for.

        The pass ends at the last of them: what lies behind (a decoder) is neither computed nor kept for the gradient.
        """
        kept: dict[str, Tensor] = {}
        before, self.partial = self.partial, tuple(layers)
        try:
            with _Capture(self, x, layers, kept, stop=True), contextlib.suppress(PassEnded):
                self(x, t, condition)
        finally:
            self.partial = before
        return [kept[name] for name in layers]

    def with_features(
        self, x: Tensor, t: Tensor, condition: Condition, layers: Sequence[str] = ("bottleneck",)
    ) -> tuple[Tensor, list[Tensor]]:
        """The denoised x, and the outputs of `layers` on the way, in one evaluation."""
        kept: dict[str, Tensor] = {}
        with _Capture(self, x, layers, kept, stop=False):
            return self(x, t, condition), [kept[name] for name in layers]

    def uneven(self) -> AbstractContextManager[None]:
        """What passes without gradient run in that the processes of a job do not make equally often: where they hold
        the network in parts, those that are done take part in the passes of the others at its end."""
        return contextlib.nullcontext()

    def after_update(self) -> None:
        """Called after every update of the weights: for networks that constrain them (EDM2's forced normalisation)."""


class PassEnded(Exception):
    """All the features asked for are there, and the rest of the pass is left out.

    Args:
        features: in the order in which they were computed.
    """

    def __init__(self, features: Sequence[Tensor]) -> None:
        super().__init__("the pass ends at the last of the features")
        self.features = list(features)


@contextlib.contextmanager
def uncompiled(denoiser: Denoiser, around: Sequence[nn.Module] | None = None) -> Iterator[None]:
    """Passes while the context lasts run without torch.compile's graphs, which know nothing of hooks within them that
    were added since, nor of forward-mode differentiation.

    Args:
        around: layers with such hooks: only graphs within which one of them is are left out; all are if none. The hooks
            of what is compiled itself stay outside of its graph.
    """
    compiled = [module for module in denoiser.modules() if module._compiled_call_impl is not None]
    if around is not None:
        inside = {id(layer) for layer in around}
        compiled = [m for m in compiled if any(id(part) in inside for part in m.modules() if part is not m)]
    graphs = [module._compiled_call_impl for module in compiled]
    for module in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, graph in zip(compiled, graphs, strict=True):
            module._compiled_call_impl = graph


@contextlib.contextmanager
def all_uncompiled(denoisers: Iterable[Denoiser]) -> Iterator[None]:
    """As `uncompiled`, of several: for passes of other sizes than a training's, each of which would make its graph."""
    with contextlib.ExitStack() as stack:
        for denoiser in denoisers:
            stack.enter_context(uncompiled(denoiser))
        yield


class _Capture:
    """Keep the outputs of layers while the context lasts; `stop` ends the pass with the last of them."""

    def __init__(
        self, denoiser: Denoiser, x: Tensor, layers: Sequence[str], kept: dict[str, Tensor], *, stop: bool
    ) -> None:
        self.denoiser, self.x, self.layers, self.kept, self.stop = denoiser, x, layers, kept, stop
        self.undo = contextlib.ExitStack()
        # Before one's own pass begins, passes for other processes may go through the same layers.
        self.for_others = denoiser.for_others

    def __enter__(self) -> None:
        layers = {name: self.denoiser.layer(name) for name in self.layers}
        self.undo.enter_context(uncompiled(self.denoiser, list(layers.values())))
        for name, layer in layers.items():
            handle = layer.register_forward_hook(lambda module, args, output, name=name: self._keep(name, output))
            self.undo.callback(handle.remove)

    def _keep(self, name: str, output: Any) -> None:
        if self.denoiser.for_others != self.for_others:
            return
        self.kept[name] = self.denoiser.feature(output, self.x)
        if self.stop and len(self.kept) == len(set(self.layers)):
            raise PassEnded([*self.kept.values()])

    def __exit__(self, *error: object) -> None:
        self.undo.close()


def device_of(denoiser: Denoiser) -> torch.device:
    """Where a denoiser is, also one that is a formula and has no weights; the CPU where nothing of it is anywhere."""
    return next((tensor.device for tensor in chain(denoiser.parameters(), denoiser.buffers())), torch.device("cpu"))


def adapted_in(module: nn.Module) -> Denoiser | None:
    """The denoiser in a module, which may be the module itself, that has weights in common with others; or None."""
    return next((m for m in module.modules() if isinstance(m, Denoiser) and m.base is not None), None)


def own_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module without those that denoisers in it have in common with others."""
    bases = [m.base for m in module.modules() if isinstance(m, Denoiser) and m.base is not None]
    return [p for p in module.parameters() if not any(p in base for base in bases)]


@torch.no_grad()
def null_features(
    denoiser: Denoiser, shape: Sequence[int], condition: Condition, layers: Sequence[str]
) -> list[Tensor]:
    """Features of one zero sample: their shapes are what heads on them are built for.

    Args:
        shape: of a sample, without the batch. condition: of one sample, on the network's device.
    """
    device = device_of(denoiser)
    if device.type == "meta":
        # Layers and tables that were added to a network without weights have theirs; shapes need none.
        denoiser = copy.deepcopy(denoiser).to(device)
    t = denoiser.schedule.grid(3)[1:2].float().to(device)
    return denoiser.features(torch.zeros(1, *shape, device=device), t, condition, layers)
