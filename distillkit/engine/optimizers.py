"""Update rules by name, and what they keep: moments in float32, or in 8 bits."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.contracts.learner import OptimizerConfig
from distillkit.errors import UsageError
from distillkit.parallel.strategy import local_of

MOMENTS: Mapping[str, bool] = {"exp_avg": True, "exp_avg_sq": False}
"""Adam's moments, and whether they have a sign."""
BLOCK, SMALLEST = 256, 4096
"""Numbers that share a scale in 8 bits, and those of the smallest tensor that is kept so (Dettmers et al. 2022,
arXiv 2110.02861, section 2); torchao's own numbers."""
EIGHT_BITS = "adamw8bit"


def make_optimizer(parameters: Sequence[nn.Parameter], config: OptimizerConfig, device: torch.device) -> Any:
    """The optimiser of these parameters.

    Raises:
        UsageError: when its library is not installed.
    """
    shared: dict[str, Any] = {
        "lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps, "weight_decay": config.weight_decay,
    }  # fmt: skip
    if config.optimizer == EIGHT_BITS:
        # torchao compiles the update of every shape of parameters, in which a rate that changes has to be a tensor.
        return _torchao().AdamW8bit(parameters, block_size=BLOCK, **shared)
    if config.optimizer == "radam":
        return torch.optim.RAdam(_apart(parameters), foreach=True, **shared)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(_apart(parameters), fused=device.type in ("cpu", "cuda"), **shared)


def _apart(parameters: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    """Groups of what is held in parts and of what is whole: one fused update takes one kind."""
    groups = [[p for p in parameters if (local_of(p) is p) == whole] for whole in (False, True)]
    return [{"params": group} for group in groups if group]


def require_optimizer(config: OptimizerConfig) -> None:
    """Refuse an update rule whose library is not installed.

    Raises:
        UsageError: saying what to install.
    """
    if config.optimizer == EIGHT_BITS and importlib.util.find_spec("torchao") is None:
        raise UsageError(
            '--optimizer adamw8bit needs torchao: pip install "distillkit[low-precision]" (or torchao), or use '
            "--optimizer adamw"
        )


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def in_eight_bits(parameter: Tensor, optimizer: str) -> bool:
    """Whether a parameter's moments are kept in 8 bits: small ones and those of odd sizes are not."""
    return optimizer == EIGHT_BITS and parameter.numel() >= SMALLEST and parameter.numel() % BLOCK == 0


def moment_bytes(parameter: Tensor, optimizer: str) -> int:
    """Bytes of both moments of a parameter."""
    if in_eight_bits(parameter, optimizer):
        # One byte a number, a float32 scale a block, and the table of the 256 values.
        return 2 * (parameter.numel() + 4 * (parameter.numel() // BLOCK) + 4 * 256)
    return 2 * parameter.numel() * parameter.element_size()


def state_shapes(parameter: Tensor, optimizer: str) -> dict[str, tuple[int, ...]]:
    """Of all that is kept of one parameter, by name: a count and two moments; those in 8 bits are codes and scales."""
    shape = tuple(parameter.shape)
    if not in_eight_bits(parameter, optimizer):
        return {"step": (), **dict.fromkeys(MOMENTS, shape)}
    quantised = {"codes": shape, "scale": (parameter.numel() // BLOCK,)}
    return {"step": (), **{f"{key}.{part}": of for key in MOMENTS for part, of in quantised.items()}}


def plain_state(entry: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """What an optimiser keeps of one parameter, as plain tensors by the names of `state_shapes`: of 8 bits the codes
    and scales themselves, which are not rounded anew on the way to a file and back."""
    for key, value in entry.items():
        if hasattr(value, "codes"):
            yield from ((f"{key}.{part}", getattr(value, part)) for part in ("codes", "scale"))
        else:
            yield key, value


def blank_state(parameter: Tensor, name: str) -> Tensor:
    """A tensor into which one of `plain_state` can be read, by its name; a moment laid out as its parameter is."""
    key, _, part = name.partition(".")
    if key not in MOMENTS:
        return torch.zeros(())
    if part == "codes":
        return torch.empty(tuple(parameter.shape), dtype=torch.uint8)
    return torch.empty(parameter.numel() // BLOCK) if part == "scale" else torch.empty_like(parameter)


def optimizer_state(parameter: Tensor, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `plain_state`, for a parameter of the same shape.

    Raises:
        KeyError: when codes have no scales.
    """
    state: dict[str, Tensor] = {}
    for name, value in plain.items():
        key, _, part = name.partition(".")
        if not part:
            # A moment is laid out in memory as its parameter is (channels-last, say): fused kernels rely on it.
            other = value.shape == parameter.shape and value.stride() != parameter.stride()
            state[key] = torch.empty_like(parameter).copy_(value) if other else value
        elif part == "codes":
            made = _quantised().zeros(
                tuple(parameter.shape), MOMENTS[key], BLOCK, parameter.device, dtype=parameter.dtype
            )
            made.codes.copy_(value)
            made.scale.copy_(plain[f"{key}.scale"])
            state[key] = made
    return state


def _torchao() -> Any:
    require_optimizer(OptimizerConfig(optimizer=EIGHT_BITS))
    # What its steps are compiled for is kept in memory alone, and nobody need know.
    warnings.filterwarnings("ignore", message="OptimState8bit does not implement _stable_hash_for_caching")
    # Its import makes torch warn of a call that torch itself no longer needs.
    noisy = logging.getLogger("torch.utils._pytree")
    before, noisy.disabled = noisy.disabled, True
    try:
        import torchao.optim

        return torchao.optim
    finally:
        noisy.disabled = before


def _quantised() -> Any:
    from torchao.optim.subclass_8bit import OptimState8bit

    return OptimState8bit
