"""What the configuration asks of networks before training: less memory, other layouts, compilation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from distillkit.contracts.denoiser import Denoiser
from distillkit.engine.config import TrainingConfig


def prepare_networks(
    config: TrainingConfig, trained: Sequence[nn.Module], others: Sequence[nn.Module], denoisers: Iterable[Denoiser]
) -> None:
    """Switch on what the configuration asks for.

    Args:
        trained: networks with gradients. others: networks without.
        denoisers: what is evaluated in training steps, and compiled if so asked.
    """
    if config.gradient_checkpointing:
        for network in trained:
            switch_on("gradient_checkpointing", network)
    for network in (*trained, *others):
        if config.float32_attention:
            switch_on("float32_attention", network)
        if config.channels_last:
            network.to(memory_format=torch.channels_last)
    if config.compile:
        # The raw networks: hooks that count evaluations sit on the denoisers and stay out of the graphs.
        for denoiser in denoisers:
            for network in denoiser.children():
                network.compile()


def switch_on(attribute: str, network: nn.Module) -> None:
    """Set a switch, such as `gradient_checkpointing`, in every block of a network that has it."""
    for module in network.modules():
        if hasattr(module, attribute):
            setattr(module, attribute, True)
