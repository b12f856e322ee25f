"""Everything that the future of a training depends on, as tensors and plain values, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from distillkit.engine.checkpoint import Checkpoint, Tensors
from distillkit.engine.cost import CostMeter
from distillkit.engine.optimization import Updater


def collect(
    modules: Mapping[str, nn.Module], updaters: Mapping[str, Updater], cost: CostMeter
) -> tuple[Tensors, dict[str, Any]]:
    """Weights, optimisers, loss scalers, the cost so far, and the global generator's state.

    The engine draws nothing from the global generator; a plugin may.
    """
    tensors: Tensors = {name: dict(module.state_dict()) for name, module in modules.items()}
    values: dict[str, Any] = {"cost": cost.counts, "updaters": {}}
    for name, updater in updaters.items():
        tensors[f"optimizer-{name}"], values["updaters"][name] = updater.state()
    tensors["generator"] = {"torch": torch.get_rng_state()}
    return tensors, values


def restore(
    checkpoint: Checkpoint, modules: Mapping[str, nn.Module], updaters: Mapping[str, Updater], cost: CostMeter
) -> None:
    """The inverse of `collect`; names and shapes must be the same."""
    for name, module in modules.items():
        module.load_state_dict(checkpoint.tensors[name])
    for name, updater in updaters.items():
        updater.load_state(checkpoint.tensors[f"optimizer-{name}"], checkpoint.values["updaters"][name])
    torch.set_rng_state(checkpoint.tensors["generator"]["torch"])
    cost.counts.update(checkpoint.values["cost"])
