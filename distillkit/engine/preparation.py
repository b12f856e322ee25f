"""What the configuration asks of networks before training: less memory, other layouts, compilation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.contracts.conditioner import Conditioner
from distillkit.contracts.denoiser import Denoiser, uncompiled
from distillkit.contracts.random import SampleRNG
from distillkit.contracts.student import StudentGenerator
from distillkit.engine.config import TrainingConfig
from distillkit.engine.precision import autocast
from distillkit.parallel.strategy import is_spread
from distillkit.parallel.units import units_of

SMALLEST = 300_000
"""Parameters of the smallest network whose layout is worth a measurement."""
PASS_SECONDS, ROUNDS = 0.1, 3
"""A measurement on the CPU takes about this long for each of 2 * (ROUNDS + 1) passes, or as long as one sample takes;
on a GPU passes are the training's own."""
LONG_SECONDS = 2.0
"""Passes in both layouts that take longer are measured once."""
WORTHWHILE = 0.95
"""The other layout must take less than this share of the time: measurements are noisy, and repeats should agree."""

GRAPHS = {"recompile_limit": 512, "accumulated_recompile_limit": 4096}
"""Most graphs: one for each shape of block, with gradients and without, for several networks and sizes of a pass."""


def prepare_networks(
    config: TrainingConfig,
    trained: Sequence[nn.Module],
    others: Sequence[nn.Module],
    denoisers: Iterable[Denoiser],
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Switch on what the configuration asks for, but for the memory layout.

    Args:
        trained: networks with gradients. others: networks without.
        denoisers: what is evaluated in training steps, and compiled if so asked.
        say: hears where a network cannot be compiled as was asked.
    """
    if config.gradient_checkpointing:
        for network in trained:
            whole = [m for m in network.modules() if isinstance(m, Denoiser) and not checkpoint_gradients(m)]
            checkpoint_gradients(network)
            for denoiser in whole:
                say(f"note: --gradient-checkpointing: {_network_name(denoiser)} has no switch for it and keeps all")
    if config.float32_attention:
        every = [m for network in (*trained, *others) for m in network.modules() if isinstance(m, Denoiser)]
        lacking = [_network_name(denoiser) for denoiser in every if not switch_on("float32_attention", denoiser)]
        if lacking and config.precision != "fp32":
            say(
                f"note: --float32-attention: {', '.join(dict.fromkeys(lacking))} has no switch for it, and attends in "
                f"{config.precision}"
            )
    if config.compile != "off":
        compile_networks(list(denoisers), say, blocks=config.compile == "blocks")


def compile_networks(denoisers: Sequence[Denoiser], say: Callable[[str], None], *, blocks: bool) -> None:
    """Have networks run as graphs of torch.compile, which are made in their first passes.

    Args:
        blocks: compile repeated blocks alone; those that are alike share a graph.
        say: hears of networks without blocks, which are compiled whole, and of those that are not compiled since what
            is held in parts lies within.
    """
    whole, plain = [], []
    for denoiser in denoisers:
        found = repeated_blocks(denoiser) if blocks else []
        # The raw networks: hooks that count evaluations sit on the denoisers and stay out of the graphs.
        networks = list(denoiser.children())
        chosen, names = found or networks, [type(network).__name__ for network in networks]
        gathered = units_of(denoiser) if is_spread(denoiser) else []
        if any(part in gathered for module in chosen for part in module.modules() if part is not module):
            plain += names
            continue
        whole += names if blocks and not found else []
        for module in chosen:
            compile_forward(module)
    if whole:
        say(f"note: {', '.join(dict.fromkeys(whole))} has no list of blocks and is compiled whole")
    if plain:
        say(
            f"note: {', '.join(dict.fromkeys(plain))} is not compiled: no graph can hold the collective operations "
            "that bring blocks within it together (--parallel)"
        )
    from torch._dynamo import config as limits

    for name, least in GRAPHS.items():
        # Graphs of all modules count together there, and what is beyond the limit would run without any.
        setattr(limits, name, max(least, getattr(limits, name)))


def compile_forward(module: nn.Module) -> None:
    """Compile what a module computes, its hooks not among it: those that take features, and those that bring the
    weights of a network in parts together, run outside of graphs, and would keep `Module.compile` from making any.
    """
    # A graph for each size: where one of a fixed size gave way to one of any size between a pass and the way back,
    # checkpointing would find another graph than it left.
    graph: Any = torch.compile(module.forward, dynamic=False)

    def call(*args: Any, **inputs: Any) -> Any:
        # For the time of the call: a copy of the module has to have its own, and no graph.
        module.__dict__["forward"] = graph
        try:
            return module._call_impl(*args, **inputs)
        finally:
            module.__dict__.pop("forward", None)

    module._compiled_call_impl = call


def repeated_blocks(denoiser: Denoiser) -> list[nn.Module]:
    """The blocks of which a network is made: those that diffusers names for a model, else the network's `blocks`."""
    for network in denoiser.modules():
        names = getattr(network, "_repeated_blocks", None) or ()
        if named := [module for module in network.modules() if type(module).__name__ in names]:
            return named
    return next((list(blocks) for network in denoiser.modules() if (blocks := getattr(network, "blocks", None))), [])


def _network_name(denoiser: Denoiser) -> str:
    return type(next(denoiser.children(), denoiser)).__name__


def checkpoint_gradients(network: nn.Module) -> bool:
    """Have every block of a network recompute its activations in the backward pass; whether any block does."""
    theirs, switched = set[nn.Module](), False
    for module in network.modules():
        # Blocks of diffusers have the switch too, and need more than it: the model that they belong to turns it.
        enable = getattr(module, "enable_gradient_checkpointing", None)
        if enable is not None:
            theirs |= set(module.modules())
            if getattr(module, "_supports_gradient_checkpointing", True):
                enable()
                switched = True
        elif module not in theirs and hasattr(module, "gradient_checkpointing"):
            setattr(module, "gradient_checkpointing", True)  # noqa: B010 - of blocks that have it
            switched = True
    return switched


def switch_on(attribute: str, network: nn.Module) -> bool:
    """Set a switch, such as `float32_attention`, in every block of a network that has it; whether any has."""
    having = [module for module in network.modules() if hasattr(module, attribute)]
    for module in having:
        setattr(module, attribute, True)
    return bool(having)


def lay_out(networks: Iterable[nn.Module], *, channels_last: bool) -> None:
    """Put the 4-D weights of networks into the layout in which their feature maps are to be."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for network in networks:
        for parameter in network.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=layout)


def choose_channels_last(
    config: TrainingConfig,
    student: StudentGenerator,
    conditioner: Conditioner,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> bool:
    """Whether feature maps are kept channels-last; one line says what was chosen where there was a choice.

    Results differ by rounding between the layouts, and a measurement may choose otherwise the next time: name one in
    the configuration where two runs must agree in every bit. A checkpoint keeps the choice of its run.
    """
    if config.channels_last != "auto":
        return config.channels_last == "on"
    if len(student.shape) != 3:
        return False
    device, weights = accelerator.device, sum(p.numel() for p in student.parameters())
    if device.type not in ("cpu", "cuda") or weights < SMALLEST:
        return False
    if _on_gpu(device) and config.compile != "off":
        say(
            "memory layout: channels-last, as torch.compile has convolutions on GPUs; --channels-last off keeps the "
            "other"
        )
        return True
    ratio = torch.zeros((), device=device)
    if accelerator.is_main_process:
        batch = min(config.batch // accelerator.num_processes, config.batch_per_device or config.batch)
        with torch.enable_grad():
            ratio += _channels_last_time(student, conditioner, batch, accelerator)
    if accelerator.num_processes > 1:
        ratio = accelerator.reduce(ratio, "sum")
    chosen = ratio.item() < WORTHWHILE
    say(
        f"memory layout: {'channels-last' if chosen else 'contiguous'}; a training pass takes {ratio.item():.2f} times "
        "as long channels-last as contiguous"
    )
    return chosen


def _on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def _clock(device: torch.device) -> float:
    """Seconds of the device's work so far; on the CPU of this process alone, as machines have others to do."""
    if not _on_gpu(device):
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _channels_last_time(
    student: StudentGenerator, conditioner: Conditioner, batch: int, accelerator: Accelerator
) -> float:
    """Time of a forward and backward pass channels-last over that of one in contiguous layout.

    The student itself is put into both layouts in turn and left in the latter: it may have weights in common with
    others, of which there is to be no second copy.
    """
    denoiser, schedule, device = student.denoiser, student.schedule, accelerator.device
    trained = [p for p in denoiser.parameters() if p.requires_grad]

    def inputs(samples: int) -> tuple[Tensor, Tensor, Condition]:
        x = SampleRNG(0).normal("layout", 0, range(samples), student.shape).to(device)
        condition = conditioner.encode(conditioner.in_turn(range(samples))).to(device)
        return x, torch.full((samples,), schedule.t_max, device=device), condition

    def seconds(x: Tensor, t: Tensor, condition: Condition, *, channels_last: bool) -> float:
        lay_out([denoiser], channels_last=channels_last)
        began = _clock(device)
        # A graph for each layout would take minutes.
        with autocast(accelerator), uncompiled(denoiser):
            out = denoiser(x, t, condition)
        torch.autograd.grad(out.float().square().mean(), trained, allow_unused=True)
        return _clock(device) - began

    one = inputs(1)
    seconds(*one, channels_last=False)
    # A GPU takes as long for one sample as for many.
    fits = batch if _on_gpu(device) else int(PASS_SECONDS / seconds(*one, channels_last=False))
    several = inputs(max(1, min(batch, fits)))
    first, rounds = [seconds(*several, channels_last=last) for last in (True, False)], ROUNDS
    if sum(first) > LONG_SECONDS:
        rounds = 1
    times = [[seconds(*several, channels_last=last) for last in (True, False)] for _ in range(rounds)]
    return min(last for last, _ in times) / min(first for _, first in times)
