"""What takes the place of a pipeline's own parts: a LoRA on its network, or other weights of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distillkit.errors import DistillkitError, UsageError
from distillkit.models.adapters import require_peft
from distillkit.models.diffusers import hub
from distillkit.models.diffusers.weights import chosen, read_state
from distillkit.models.store.folder import check_fit
from distillkit.reading import read_mapping
from distillkit.text import short

LORA_FILE = "pytorch_lora_weights.safetensors"
ADAPTER = "published"


def lora_file(name: str) -> Path:
    """The LoRA of a name: a file, or the one in a folder or a repository that diffusers looks for.

    Raises:
        UsageError: where there is none.
        DistillkitError: when it cannot be had.
    """
    require_peft()
    if name.startswith(hub.PREFIX):
        return hub.file(lora_name(name))
    place = Path(name).expanduser()
    place = place / LORA_FILE if place.is_dir() else place
    if not place.is_file():
        raise UsageError(f"--lora {name}: there is no {place}; name a file, a folder with {LORA_FILE}, or hf:ORG/REPO")
    return place


def lora_name(name: str) -> str:
    """The file of the hub that a LoRA's name stands for: itself, or the one that diffusers looks for."""
    if hub.is_file(name):
        return name
    repository, revision = hub.parts(name)
    return f"{hub.PREFIX}{repository}/{LORA_FILE}{f'@{revision}' if revision else ''}"


def weights_place(name: str, component: str, dtype: torch.dtype) -> Path:
    """A file of weights, or the folder of a network.

    Raises:
        UsageError: where there is none.
        DistillkitError: when it cannot be had.
    """
    if name.startswith(hub.PREFIX):
        place = hub.file(name) if hub.is_file(name) else hub.snapshot(name, dtype=dtype)
    else:
        place = Path(name).expanduser()
    if place.is_dir() and not (place / "config.json").is_file():
        place = place / component
    if not (place.is_file() or (place / "config.json").is_file()):
        raise UsageError(
            f"--weights {name}: there is no such file, and no folder with the config.json of a {component} there"
        )
    return place


def network_with(folder: Path, component: str, name: str, place: Path) -> nn.Module:
    """A pipeline's network with other weights.

    Args:
        folder: of the pipeline.
        component: the network's, such as "unet".
        name: class of the network.
        place: a file of weights for its own configuration, or a folder of weights with a configuration of theirs.

    Raises:
        UsageError: for a network of another class.
        DistillkitError: when they are damaged, or do not fit.
    """
    import diffusers

    described = place if place.is_dir() else folder / component
    config = read_mapping(described / "config.json")
    if (theirs := config.get("_class_name")) != name:
        raise UsageError(f"{described} holds a {short(theirs)}, and {folder} has a {name}")
    kind: Any = getattr(diffusers, name, None)
    with refused(f"diffusers cannot load {place}"):
        if place.is_dir():
            variant = found.variant if (found := chosen([path.name for path in place.iterdir()])) else ""
            own: nn.Module = kind.from_pretrained(
                str(place), use_safetensors=True, local_files_only=True, variant=variant or None
            )
            return own
        with torch.device("meta"):
            network: nn.Module = kind.from_config(config)
    state = read_state(place)
    check_fit(network.state_dict(), state, str(place))
    network.load_state_dict(state, assign=True)
    if any(buffer.is_meta for buffer in network.buffers()):  # those that are in no file
        network = kind.from_config(config)
        network.load_state_dict(state)
    return network.eval()


def fuse(pipeline: Any, file: Path, scale: float, component: str) -> None:
    """Add a LoRA to the pipeline's weights.

    Raises:
        UsageError: for a pipeline that loads none, or a LoRA of another network.
        DistillkitError: when it is damaged, or diffusers refuses it.
    """
    if not hasattr(pipeline, "load_lora_weights"):
        raise UsageError(f"--lora: a {type(pipeline).__name__} of diffusers loads none")
    safe = file.suffix == ".safetensors"
    place: Any = str(file.parent) if safe else read_state(file)
    how = {"weight_name": file.name, "use_safetensors": True, "local_files_only": True} if safe else {}
    network = getattr(pipeline, component)
    with refused(f"diffusers cannot load the LoRA {file}"), _unlogged():
        # Which takes its entries out of a mapping that it is given.
        converted = pipeline.lora_state_dict(place if safe else dict(place), **how)
        converted = converted[0] if isinstance(converted, tuple) else converted
        _check_layers(network, component, converted, file)
        pipeline.load_lora_weights(place, adapter_name=ADAPTER, **how)
        pipeline.fuse_lora(lora_scale=scale, safe_fusing=True)
        pipeline.unload_lora_weights()


def _check_layers(network: nn.Module, component: str, state: Mapping[str, Any], file: Path) -> None:
    """Refuse a LoRA of another network, of which diffusers would leave out what does not fit."""
    modules = {name for name, _ in network.named_modules()}
    wanted = {
        name.partition(".lora")[0].removeprefix(f"{component}.")
        for name in state
        if name.startswith(f"{component}.") and ".lora" in name and ".processor." not in name
    }
    if not any(name.startswith(f"{component}.") for name in state):
        raise UsageError(f"--lora {file}: it holds no layers of the pipeline's {component}")
    if missing := sorted(wanted - modules):
        raise UsageError(
            f"--lora {file}: it is of another network: {len(missing)} of its {len(wanted)} layers are not in the "
            f"pipeline's {component}, such as {short(missing[0])}"
        )


@contextmanager
def _unlogged() -> Iterator[None]:
    """Without diffusers' remarks on text encoders that a LoRA leaves alone."""
    log = logging.getLogger("diffusers")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Whatever diffusers raises as one message."""
    try:
        yield
    except DistillkitError:
        raise
    except Exception as error:  # diffusers and transformers raise many kinds
        raise DistillkitError(f"{what} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
