"""Copies of a network that train adapters: one set of frozen weights for all of them, and layers of peft beside these.

Every copy is a tree of modules of its own, with its own adapter and nothing to switch: whatever is evaluated, in
whatever order, with or without gradient checkpointing, cannot meet another copy's adapter.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.contracts.adapter import WRAPPED, AdapterConfig, Base
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.teacher import Teacher, whole_copy
from distillkit.errors import UsageError
from distillkit.models.hashes import content_hash

NAME = "default"
"""Of the one adapter that a layer has."""
COPIES = 1009
"""More than a recipe makes: copies of neighbouring seeds begin differently."""
INSTALL = 'pip install "distillkit[lora]"'


def require_peft() -> None:
    """Refuse adapters where peft is not installed.

    Raises:
        UsageError: saying what to install.
    """
    if importlib.util.find_spec("peft") is None:
        raise UsageError(f"adapters need peft, which is not installed: {INSTALL}")


def base_sha256(teacher: Teacher) -> str:
    """The hash by which the weights are known that a teacher's copies have in common."""
    return teacher.spec.weights_sha256 or content_hash(teacher.start.state_dict())


class Lender:
    """For `Teacher.copying`: each copy has the teacher's weights in common with it, or is whole.

    Args:
        sha256: see `base_sha256`.
        adapter_of: number of a copy, in the order in which they are made -> its adapter; None for a whole copy.
        seed: of the adapters' first weights, which are each copy's own.
    """

    def __init__(self, sha256: str, adapter_of: Callable[[int], AdapterConfig | None], seed: int = 0) -> None:
        self.sha256, self.adapter_of, self.seed, self.made = sha256, adapter_of, seed, 0

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        number, self.made = self.made, self.made + 1
        config = self.adapter_of(number)
        if config is None:
            return whole_copy(denoiser)
        own = (COPIES * self.seed + number) % 2**63
        return adapted(borrowed(denoiser, Base(denoiser, self.sha256, number)), config, seed=own)


class Borrower:
    """For `Teacher.copying` while it is found out which copies a recipe makes: all of them are free.

    Args:
        sha256: see `base_sha256`.
    """

    def __init__(self, sha256: str) -> None:
        self.sha256, self.made = sha256, 0

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        number, self.made = self.made, self.made + 1
        return borrowed(denoiser, Base(denoiser, self.sha256, number))


@contextmanager
def copying(teacher: Teacher, how: Callable[[Denoiser], Denoiser]) -> Iterator[None]:
    """Have a teacher make its copies so while the context lasts."""
    before, teacher.copying = teacher.copying, how
    try:
        yield
    finally:
        teacher.copying = before


def borrowed(denoiser: Denoiser, base: Base) -> Denoiser:
    """A copy, dropout off, whose weights are the denoiser's own."""
    made = copy.deepcopy(denoiser, dict(base.memo)).eval()
    made.base = base
    return made


def adapted(denoiser: Denoiser, config: AdapterConfig, *, seed: int = 0) -> Denoiser:
    """The same denoiser, which has a base, with adapters in its layers, in float32: the same function until they are
    trained.

    Args:
        config: without targets, those of the network's family are taken (`model.adapter_targets`), or where it names
            none, every layer that can have an adapter.
        seed: of the first weights.

    Raises:
        UsageError: for targets that the network does not have; names those that it has. Where peft is not installed.
    """
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    own = _own_layers(denoiser)
    targets, names = chosen(denoiser, config.targets)
    alpha: Any = config.scale * config.rank  # peft says int, and divides it by the rank
    asked = LoraConfig(r=config.rank, lora_alpha=alpha, target_modules=names, lora_dropout=0.0, bias="none")
    asked._register_custom_module(dict(own))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(asked, denoiser, NAME)
    vars(denoiser).pop("peft_config", None)
    for layer in layers_of(denoiser).values():
        # Half a precision is enough for weights that stay as they are, not for those that small updates add up in.
        layer.lora_A.float()
        layer.lora_B.float()
    denoiser.adapter = config.model_copy(update={"targets": targets})
    return denoiser


def chosen(denoiser: nn.Module, targets: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """The targets, those of the network's family where none are asked for, and the names of their layers.

    Raises:
        UsageError: for a target that the network does not have; names those that it has.
    """
    known = adaptable(denoiser)
    network = type(getattr(denoiser, "model", denoiser)).__name__
    own = tuple(getattr(getattr(denoiser, "model", None), "adapter_targets", ()))
    found = {target: [n for n in known if n == target or n.endswith(f".{target}")] for target in targets or own}
    absent = [target for target, names in found.items() if not names]
    if absent and (targets or len(absent) == len(found)):
        there = ", ".join(sorted({_ending(name) for name in known}))
        raise UsageError(
            f"{f'--targets {absent[0]}' if targets else ', '.join(absent)}: the network {network} has no layer of that "
            f"name, or whose name ends so, that can have an adapter; it has {there or 'none'}"
            + ("" if targets else ". Choose among them by --targets")
        )
    wanted = tuple(target for target, names in found.items() if names)
    names = sorted({name for each in found.values() for name in each}) or sorted(known)
    if not names:
        raise UsageError(f"the network {network} has no linear layer and no convolution that could have an adapter")
    return wanted or tuple(names), names


def adaptable(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The layers that can have an adapter, by name."""
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_own_layers(denoiser))
    return {
        name: module
        for name, module in denoiser.named_modules()
        if isinstance(module, kinds)
        and getattr(module, "weight", None) is not None
        and getattr(module, "groups", 1) == 1
    }


def _own_layers(denoiser: nn.Module) -> Mapping[type[nn.Module], type[nn.Module]]:
    """The network's own kinds of layers that can have an adapter -> theirs with one (`model.adapter_layers`)."""
    found: Mapping[type[nn.Module], type[nn.Module]] = getattr(getattr(denoiser, "model", None), "adapter_layers", {})
    return found


def _ending(name: str) -> str:
    """What is said of a layer's name: its last word, and the one before where that is a number."""
    above, _, last = name.rpartition(".")
    return f"{above.rpartition('.')[2]}.{last}" if last.isdecimal() else last


def layers_of(module: nn.Module) -> dict[str, Any]:
    """peft's layers with an adapter, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


def on_base(denoiser: Denoiser, base: Base) -> bool:
    """Put a base's weights into a network that has all of them by the same names and shapes; whether it has."""
    own = dict(denoiser.named_parameters(remove_duplicate=False))
    if any(name not in own or own[name].shape != value.shape for name, value in base.parameters.items()):
        return False
    for name, parameter in base.parameters.items():
        above, _, last = name.rpartition(".")
        denoiser.get_submodule(above)._parameters[last] = parameter
    for name, buffer in base.buffers.items():
        above, _, last = name.rpartition(".")
        denoiser.get_submodule(above)._buffers[last] = buffer
    denoiser.base = base
    return True


_LENT: ContextVar[tuple[Base, AdapterConfig] | None] = ContextVar("lent", default=None)


@contextmanager
def building_on(base: Base, config: AdapterConfig) -> Iterator[None]:
    """Networks that are built from descriptions while the context lasts, and have all of the base's weights, are put on
    the base with adapters."""
    token = _LENT.set((base, config))
    try:
        yield
    finally:
        _LENT.reset(token)


def placed(denoiser: Denoiser) -> Denoiser:
    """A network that was built, on the base of the present context where there is one."""
    if (lent := _LENT.get()) is not None and on_base(denoiser, lent[0]):
        return adapted(denoiser, lent[1])
    return denoiser


@torch.no_grad()
def merged_weights(denoiser: Denoiser) -> dict[str, Tensor]:
    """All weights by the names that they have in the network's description, adapters added to what they adapt; nothing
    of the network is changed."""
    layers = layers_of(denoiser)
    state: dict[str, Tensor] = {}
    for place, module in denoiser.named_modules():
        above = place.rpartition(".")[0]
        if any(f".{part}." in f".{place}." for part in ("lora_A", "lora_B", "lora_dropout")):
            continue
        added = layers[above].get_delta_weight(NAME) if place.endswith(WRAPPED) and above in layers else None
        held = {**module._parameters, **module._buffers}
        for name, value in held.items():
            if value is None or name in module._non_persistent_buffers_set:
                continue
            whole = value if added is None or name != "weight" else (value + added.to(value.device)).to(value.dtype)
            state[f"{place}.{name}".replace(WRAPPED, "").removeprefix(".")] = whole.detach()
    return state
