"""Everything that the future of a training depends on, as tensors and plain values, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from distillkit.contracts.health import Health
from distillkit.engine.cost import CostMeter
from distillkit.engine.optimization import Updater
from distillkit.engine.processes import Processes
from distillkit.engine.saved import Checkpoint, Tensors
from distillkit.errors import DistillkitError
from distillkit.parallel.strategy import local_of
from distillkit.reading import Unreadable, validated
from distillkit.students.checkpoints import STATE, file_name

Count = Annotated[int, Field(ge=0, le=2**53)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Selection(_Strict):
    best_step: Count | None
    best_value: float | None
    evaluated: Count


class _Updater(_Strict):
    scaler: dict[str, Any]
    skipped: Count = 0


class Progress(_Strict):
    """The plain values of a checkpoint that a training takes up."""

    channels_last: bool
    selection: _Selection
    to_evaluate: bool
    to_preview: bool = False
    seconds: Amount = 0.0
    cost: dict[str, Amount]
    updaters: dict[str, _Updater]
    health: dict[str, Annotated[Health, Field(strict=False)]] = Field(default_factory=dict)
    student: Any = None
    teacher: Any = None


def progress(checkpoint: Checkpoint) -> Progress:
    """The plain values of a checkpoint.

    Raises:
        Unreadable: naming the first that is missing or no value of its kind.
    """
    return validated(Progress, checkpoint.values, f"values in {checkpoint.folder / STATE}")


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
    """The inverse of `collect`; names and shapes must be the same.

    Raises:
        Unreadable: naming the first tensor that is missing, of another shape or unknown; nothing has been changed then.
    """
    values, tensors = progress(checkpoint), {}
    for name, module in modules.items():
        tensors[name] = dict(module.state_dict())
        _check(checkpoint, name, {key: value.shape for key, value in tensors[name].items()}, whole=True)
    for name, updater in updaters.items():
        group = f"optimizer-{name}"
        _check(checkpoint, group, updater.shapes())
        if name not in values.updaters:
            raise Unreadable(f"cannot read {checkpoint.folder / STATE}: values.updaters.{name}: it is missing")
        tensors[group] = updater.blank(checkpoint.held[group])
    checkpoint.fill(tensors)
    for name, module in modules.items():
        # Most have been filled in place; a module may keep something else than it shows.
        module.load_state_dict(tensors[name])
    for name, updater in updaters.items():
        try:
            updater.load_state(tensors[f"optimizer-{name}"], checkpoint.values["updaters"][name])
        except (KeyError, TypeError, RuntimeError) as error:  # of the scaler's state, whose keys are torch's own
            raise Unreadable(
                f"cannot read {checkpoint.folder / STATE}: values.updaters.{name}: not the state of an optimiser "
                f"({error})"
            ) from error
    cost.counts.update(checkpoint.values["cost"])


def _check(checkpoint: Checkpoint, name: str, shapes: Mapping[str, tuple[int, ...]], *, whole: bool = False) -> None:
    """Whether a group of tensors is there, with these shapes.

    Args:
        whole: whether every one must be there.
    """
    where = checkpoint.folder / file_name(name)
    if name not in checkpoint.held:
        raise Unreadable(f"{checkpoint.folder / STATE} lists no {where.name}, which this run needs")
    found = checkpoint.held[name]
    if whole and (absent := sorted(set(shapes) - set(found))):
        raise Unreadable(f"cannot read {where}: {absent[0]} is missing")
    for key, value in found.items():
        if key not in shapes:
            raise Unreadable(f"cannot read {where}: this run has no {key}")
        if value.shape != shapes[key]:
            raise Unreadable(f"cannot read {where}: {key} has shape {tuple(value.shape)}, not {tuple(shapes[key])}")


def require_finite(tensors: Tensors, step: int, processes: Processes) -> None:
    """Refuse to keep weights or moments with NaN or infinity: nothing good could come of them. One transfer for all.

    Called by all processes; each looks at what it holds of sharded tensors, and all hear of it.

    Raises:
        DistillkitError: naming the first of them.
    """
    if found := next(filter(None, processes.gather(_not_finite(tensors))), ""):
        raise DistillkitError(
            f"{found} holds NaN or infinity after step {step}, so it was not saved; the last good checkpoint "
            "is kept. Try a lower --lr, --precision fp32 or bf16, or a smaller --clip-grad-norm, then start anew."
        )


def _not_finite(tensors: Tensors) -> str:
    """The first tensor that is not finite, as 'group: name'."""
    shown = {f"{group}: {name}": local_of(t) for group, inner in tensors.items() for name, t in inner.items()}
    shown = {name: t for name, t in shown.items() if t.is_floating_point() and t.numel()}
    if not shown:
        return ""
    device = next(iter(shown.values())).device
    finite = torch.stack([tensor.isfinite().all().to(device) for tensor in shown.values()]).tolist()
    return next((name for name, good in zip(shown, finite, strict=True) if not good), "")


def generators(accelerator: Accelerator) -> dict[str, Tensor]:
    """States of torch's global generators, a row for each process; called by all of them.

    The engine draws nothing from them, but dropout does, and a plugin may.
    """
    states = _states(accelerator.device)
    if accelerator.num_processes == 1:
        return {kind: state[None] for kind, state in states.items()}
    return {kind: accelerator.gather(state[None].to(accelerator.device)).cpu() for kind, state in states.items()}


def restore_generators(checkpoint: Checkpoint, accelerator: Accelerator) -> None:
    """Set the global generators to this process' row, or to an earlier one's where more processes resume than saved.

    Raises:
        Unreadable: when they are missing or no states.
    """
    where = checkpoint.folder / "generators.safetensors"
    saved = checkpoint.whole("generators")
    if "cpu" not in saved:
        raise Unreadable(f"cannot read {where}: the state of the cpu's generator is missing")
    if odd := [kind for kind, rows in saved.items() if rows.ndim != 2 or not len(rows) or rows.dtype != torch.uint8]:
        raise Unreadable(f"cannot read {where}: {odd[0]} does not hold states of generators")
    # A copy of the row: torch may crash on a state that begins within other memory.
    mine = {kind: rows[accelerator.process_index % len(rows)].clone() for kind, rows in saved.items()}
    try:
        _set(mine, accelerator.device)
    except RuntimeError as error:
        raise Unreadable(f"cannot read {where}: {error}") from error


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
