"""What takes the place of a pipeline's own parts: a LoRA on its network, or other weights of it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distillkit.errors import DistillkitError, UsageError, is_out_of_memory
from distillkit.files import write_tensors
from distillkit.models.adapters import require_peft
from distillkit.models.diffusers import hub
from distillkit.models.diffusers.weights import chosen, read_state
from distillkit.models.store.bare import LORA, kind_of
from distillkit.models.store.folder import check_fit
from distillkit.models.text.load import quietly
from distillkit.reading import read_mapping
from distillkit.tensors import read_with_metadata
from distillkit.text import short

LORA_FILE = "pytorch_lora_weights.safetensors"
ADAPTER = "published"
CALLED_WITH = (
    "in_channels", "out_channels", "cross_attention_dim", "addition_embed_type", "encoder_hid_dim_type",
    "class_embed_type", "num_class_embeds", "num_embeds_ada_norm", "joint_attention_dim", "pooled_projection_dim",
    "caption_channels",
)  # fmt: skip
"""Settings of a network that say what a pipeline has to give it; a guidance that is an input is not among them."""
FIRST, SECOND = ("lora_A.", "lora.down.", "lora_down."), ("lora_B.", "lora.up.", "lora_up.")
"""In the names of a LoRA's two factors: from a layer's inputs, and to its outputs."""
_ADAPTERS_NAME = re.compile(r"\.lora_([AB])\.(?!weight$|bias$)[^.]+\.(weight|bias)$")


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
        raise UsageError(f"--lora {name}: {place} is not there; name a file, a folder with {LORA_FILE}, or hf:ORG/REPO")
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
        UsageError: for a network of another class or of another pipeline, or a LoRA.
        DistillkitError: when they are damaged, or do not fit.
    """
    import diffusers

    described = place if place.is_dir() else folder / component
    config = read_mapping(described / "config.json")
    if (theirs := config.get("_class_name")) != name:
        raise UsageError(f"{described} holds a {short(theirs)}, and {folder} has a {name}")
    own = read_mapping(folder / component / "config.json")
    for setting in CALLED_WITH:
        if (asked := config.get(setting)) != (given := own.get(setting)):
            raise UsageError(
                f"--weights {place}: it is of another pipeline: its {setting} is {short(asked)}, and in {folder} "
                f"{short(given)}"
            )
    kind: Any = getattr(diffusers, name, None)
    with refused(f"diffusers cannot load {place}"):
        if place.is_dir():
            variant = found.variant if (found := chosen([path.name for path in place.iterdir()])) else ""
            loaded: nn.Module = kind.from_pretrained(
                str(place), use_safetensors=True, local_files_only=True, variant=variant or None
            )
            return loaded
        with torch.device("meta"):
            network: nn.Module = kind.from_config(config)
    state = read_state(place)
    if kind_of(state) == LORA:
        raise UsageError(f"--weights {place}: it holds a LoRA and no whole network: give it as --lora")
    check_fit(network.state_dict(), state, str(place), f"the {component} of {folder}")
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
    network = getattr(pipeline, component)
    with tempfile.TemporaryDirectory() as aside, refused(f"diffusers cannot load the LoRA {file}"):
        place = _for_diffusers(file, Path(aside))
        how = {"weight_name": place.name, "use_safetensors": True, "local_files_only": True}
        converted: Any = pipeline.lora_state_dict(str(place.parent), **how)
        layers = _layers(network, component, converted[0] if isinstance(converted, tuple) else converted, file)
        pipeline.load_lora_weights(str(place.parent), adapter_name=ADAPTER, **how)
        loaded = {name for name, module in network.named_modules() if ADAPTER in getattr(module, "lora_A", {})}
        if left := sorted(layers - loaded):
            raise DistillkitError(f"--lora {file}: diffusers leaves {len(left)} of its layers out, such as {left[0]}")
        pipeline.fuse_lora(lora_scale=scale, safe_fusing=True)
        pipeline.unload_lora_weights()


def _for_diffusers(file: Path, aside: Path) -> Path:
    """A safetensors file that diffusers takes all of: the LoRA's own where it is one, else one in `aside`. Files that
    torch has saved are read as data, and names that hold an adapter's name (lora_A.default_0) are freed of it.

    Raises:
        DistillkitError: when it is damaged, or a tensor holds NaN or infinity; names it.
    """
    safe = file.suffix == ".safetensors"
    tensors, metadata = read_with_metadata(file) if safe else (read_state(file), {})
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise DistillkitError(f"--lora {file}: the tensor {short(name)} holds NaN or infinity")
    named = {_ADAPTERS_NAME.sub(r".lora_\1.\2", name): value for name, value in tensors.items()}
    if safe and named.keys() == tensors.keys():
        return file
    write_tensors(aside / LORA_FILE, {name: value.contiguous() for name, value in named.items()}, metadata)
    return aside / LORA_FILE


def _layers(network: nn.Module, component: str, state: Mapping[str, Any], file: Path) -> set[str]:
    """The layers of a network that a LoRA has both factors for.

    Raises:
        UsageError: for a LoRA of another network, of which diffusers would leave out what does not fit.
        DistillkitError: where one of two factors is missing, which diffusers would fill with anything.
    """
    own = {name.removeprefix(f"{component}.") for name in state if name.startswith(f"{component}.")}
    if not own:
        raise UsageError(
            f"--lora {file}: it holds no layers of the pipeline's {component} by the names of diffusers or kohya"
        )
    factors = {name for name in own if ".lora" in name and ".processor." not in name}
    for name in sorted(factors):
        if (other := _other_factor(name)) and other not in factors:
            raise DistillkitError(f"--lora {file}: it holds {short(name)} and not {short(other)}; fetch it anew")
    layers = {name.partition(".lora")[0] for name in factors}
    modules = dict(network.named_modules())
    if missing := sorted(layers - modules.keys()):
        raise UsageError(
            f"--lora {file}: it is of another network: {len(missing)} of its {len(layers)} layers are not in the "
            f"pipeline's {component}, such as {short(missing[0])}"
        )
    for name in sorted(factors):
        factor, weight = state[f"{component}.{name}"], getattr(modules[name.partition(".lora")[0]], "weight", None)
        if weight is not None and not _fits(name, tuple(factor.shape), tuple(weight.shape)):
            raise UsageError(
                f"--lora {file}: it is of another network: its {short(name)} is {tuple(factor.shape)}, and the layer's "
                f"weight in the pipeline's {component} {tuple(weight.shape)}"
            )
    return layers


def _fits(name: str, factor: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether a factor has the inputs, or the outputs, of a layer's weight (out, in, ...)."""
    if not _other_factor(name):
        return True
    if any(first in name for first in FIRST):
        return factor[1:] == weight[1:]
    return (factor[:1], len(factor)) == (weight[:1], len(weight))


def _other_factor(name: str) -> str:
    """The name of the factor that goes with one of a LoRA's two; "" for what is none of them."""
    for one, other in zip(FIRST, SECOND, strict=True):
        for first, second in ((one, other), (other, one)):
            if first in name and name.endswith("weight"):
                return name.replace(first, second)
    return ""


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Whatever diffusers and transformers raise as one message, without what else they say."""
    try:
        with quietly("diffusers", "transformers"):
            yield
    except DistillkitError:
        raise
    except Exception as error:  # diffusers and transformers raise many kinds
        if is_out_of_memory(error):
            raise
        raise DistillkitError(f"{what} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
