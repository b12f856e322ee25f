"""What a pipeline of diffusers is called with: noise, prompts or classes, randomness; how often its network runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.errors import UsageError
from distillkit.models.diffusers.folder import COMPONENTS


def network_of(pipeline: Any) -> nn.Module:
    network: nn.Module = next(n for name in COMPONENTS if (n := getattr(pipeline, name, None)) is not None)
    return network


def latent_shape(pipeline: Any, size: tuple[int, int] | None) -> tuple[int, int, int]:
    """(C, h, w) of the noise, for pictures of this height and width or the pipeline's own.

    Raises:
        UsageError: where the pipeline does not say it.
    """
    config: Any = network_of(pipeline).config
    vae = getattr(pipeline, "vae", None)
    channels = config.in_channels if vae is None else vae.config.latent_channels
    if size:
        factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        if any(side % factor for side in size):
            raise UsageError(f"--resolution {size[1]}x{size[0]}: sides are multiples of {factor} for this pipeline")
        return channels, size[0] // factor, size[1] // factor
    side = getattr(config, "sample_size", None) or getattr(pipeline, "default_sample_size", None)
    if isinstance(side, int):
        return channels, side, side
    if isinstance(side, list | tuple) and len(side) == 2:
        return channels, int(side[0]), int(side[1])
    raise UsageError(f"a {type(pipeline).__name__} whose network does not say its sample_size cannot be measured")


@dataclass(frozen=True)
class Conditions:
    """What a pipeline makes images of: prompts, classes in turn, or nothing."""

    prompts: Sequence[str] = ()
    classes: int = 0
    chosen: tuple[int, ...] = ()

    @classmethod
    def of(cls, pipeline: Any, prompts: Sequence[str], name: str) -> Conditions:
        """What a pipeline is asked for.

        Raises:
            UsageError: for prompts where it takes none, or none where it takes some.
        """
        known = inspect.signature(pipeline.__call__).parameters
        if "prompt" in known:
            if not prompts:
                raise UsageError(
                    f"{name}: it makes pictures of text, and no prompts are given (--prompts FILE; of `sample`, "
                    "--prompt)"
                )
            return cls(prompts=prompts)
        if prompts:
            raise UsageError(f"{name} takes no prompts, and some are given")
        return cls(classes=int(getattr(network_of(pipeline).config, "num_embeds_ada_norm", 0) or 0))

    def only(self, classes: Sequence[str]) -> Conditions:
        """The same of some classes alone, by number, in turn.

        Raises:
            UsageError: for what is no class, or where there are none.
        """
        if not self.classes:
            raise UsageError("--labels: this pipeline takes no classes")
        if wrong := [name for name in classes if not (name.isdecimal() and int(name) < self.classes)]:
            raise UsageError(f"--labels {wrong[0]}: numbers from 0 to {self.classes - 1}")
        return replace(self, chosen=tuple(int(name) for name in classes))

    def caption(self, index: int) -> str:
        """What a sample shows, for people."""
        if self.prompts:
            return self.prompts[index % len(self.prompts)]
        return str(self._label(index)) if self.classes else ""

    def _label(self, index: int) -> int:
        return self.chosen[index % len(self.chosen)] if self.chosen else index % self.classes

    def at(self, batch: range) -> dict[str, Any]:
        """The arguments of a call for samples at these indices."""
        if self.prompts:
            return {"prompt": [self.prompts[index % len(self.prompts)] for index in batch]}
        return {"class_labels": [self._label(index) for index in batch]} if self.classes else {}


@contextmanager
def drawing_from(scheduler: Any, generators: list[torch.Generator]) -> Iterator[None]:
    """The scheduler draws fresh noise from these, also where its pipeline leaves it to torch's own generator."""
    step = scheduler.step
    if "generator" not in inspect.signature(step).parameters:
        yield
        return

    @wraps(step)
    def drawing(*args: Any, **given: Any) -> Any:
        given.setdefault("generator", generators)
        return step(*args, **given)

    scheduler.step = drawing
    try:
        yield
    finally:
        del scheduler.step


@contextmanager
def counted(network: nn.Module) -> Iterator[Callable[[], int]]:
    """Count the samples that pass through a network of diffusers; a guided evaluation passes twice as many."""
    seen = 0

    def count(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        nonlocal seen
        first = args[0] if args else given.get("hidden_states", given.get("sample"))
        seen += len(first) if isinstance(first, Tensor) else 0

    handle = network.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield lambda: seen
    finally:
        handle.remove()
