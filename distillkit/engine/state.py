"""Everything that the future of a training depends on, as tensors and plain values, and back."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distillkit.engine.checkpoint import Checkpoint, Tensors
from distillkit.engine.cost import CostMeter
from distillkit.engine.optimization import Updater


def collect(
    modules: Mapping[str, nn.Module], updaters: Mapping[str, Updater], cost: CostMeter
) -> tuple[Tensors, dict[str, Any]]:
    """Weights, optimisers, loss scalers and the cost so far."""
    tensors: Tensors = {name: dict(module.state_dict()) for name, module in modules.items()}
    values: dict[str, Any] = {"cost": cost.counts, "updaters": {}}
    for name, updater in updaters.items():
        tensors[f"optimizer-{name}"], values["updaters"][name] = updater.state()
    return tensors, values


def restore(
    checkpoint: Checkpoint, modules: Mapping[str, nn.Module], updaters: Mapping[str, Updater], cost: CostMeter
) -> None:
    """The inverse of `collect`; names and shapes must be the same."""
    for name, module in modules.items():
        module.load_state_dict(checkpoint.tensors[name])
    for name, updater in updaters.items():
        updater.load_state(checkpoint.tensors[f"optimizer-{name}"], checkpoint.values["updaters"][name])
    cost.counts.update(checkpoint.values["cost"])


def generators(accelerator: Accelerator) -> dict[str, Tensor]:
    """States of torch's global generators, a row for each process; called by all of them.

    The engine draws nothing from them, but dropout does, and a plugin may.
    """
    states = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    if accelerator.num_processes == 1:
        return {kind: state[None] for kind, state in states.items()}
    return {kind: accelerator.gather(state[None].to(accelerator.device)).cpu() for kind, state in states.items()}


def restore_generators(saved: Mapping[str, Tensor], accelerator: Accelerator) -> None:
    """Set the global generators to this process' row, or to an earlier one's where more processes resume than saved."""
    # A copy of the row: torch may crash on a state that begins within other memory.
    mine = {kind: rows[accelerator.process_index % len(rows)].clone() for kind, rows in saved.items()}
    torch.set_rng_state(mine["cpu"])
    if accelerator.device.type == "cuda" and "cuda" in mine:
        torch.cuda.set_rng_state(mine["cuda"], accelerator.device)


def own_draws(accelerator: Accelerator) -> AbstractContextManager[None]:
    """Whatever is drawn from the global generators in this context is not missing from the training."""
    device = accelerator.device
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
