"""Everything that the future of a training depends on, as tensors and plain values, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distillkit.engine.checkpoint import Checkpoint, Tensors
from distillkit.engine.cost import CostMeter
from distillkit.engine.optimization import Updater
from distillkit.errors import DistillkitError


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


def require_finite(tensors: Tensors, step: int) -> None:
    """Refuse to keep weights or moments with NaN or infinity: nothing good could come of them. One transfer for all.

    Raises:
        DistillkitError: naming the first of them.
    """
    names = [(group, name) for group, inner in tensors.items() for name, t in inner.items() if t.is_floating_point()]
    if not names:
        return
    device = tensors[names[0][0]][names[0][1]].device
    finite = torch.stack([tensors[group][name].isfinite().all().to(device) for group, name in names])
    if not bool(finite.all()):
        group, name = names[finite.tolist().index(False)]
        raise DistillkitError(
            f"{group}: {name} holds NaN or infinity after step {step}, so it was not saved; the last good checkpoint "
            "is kept. Try a lower --lr, --precision fp32 or bf16, or a smaller --clip-grad-norm, then start anew."
        )


def generators(accelerator: Accelerator) -> dict[str, Tensor]:
    """States of torch's global generators, a row for each process; called by all of them.

    The engine draws nothing from them, but dropout does, and a plugin may.
    """
    states = _states(accelerator.device)
    if accelerator.num_processes == 1:
        return {kind: state[None] for kind, state in states.items()}
    return {kind: accelerator.gather(state[None].to(accelerator.device)).cpu() for kind, state in states.items()}


def restore_generators(saved: Mapping[str, Tensor], accelerator: Accelerator) -> None:
    """Set the global generators to this process' row, or to an earlier one's where more processes resume than saved."""
    # A copy of the row: torch may crash on a state that begins within other memory.
    mine = {kind: rows[accelerator.process_index % len(rows)].clone() for kind, rows in saved.items()}
    _set(mine, accelerator.device)


@contextmanager
def own_draws(accelerator: Accelerator) -> Iterator[None]:
    """Whatever is drawn from the global generators in this context is not missing from the training."""
    before = _states(accelerator.device)
    try:
        yield
    finally:
        _set(before, accelerator.device)


def _states(device: torch.device) -> dict[str, Tensor]:
    """Of the generators that a process on this device draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def _set(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])
