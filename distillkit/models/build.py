"""From descriptions, which are plain data, to networks, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from distillkit.contracts.codec import Codec
from distillkit.contracts.conditioner import ClassLabels, Conditioner
from distillkit.contracts.denoiser import Denoiser, adapted_in
from distillkit.errors import DistillkitError, UsageError
from distillkit.models.adapters import adapted, merged_weights, on_base, placed
from distillkit.models.weightless import weights_left_out
from distillkit.registry import BUILT_IN, blaming, registry
from distillkit.text import short

MOST_PARAMETERS = 20_000_000_000
PACKED = {f"{BUILT_IN}:FluxTransformer2DModel": 4}
"""Places of a sample that a network takes as the channels of one token, where it does."""


def build_denoiser(description: Mapping[str, Any]) -> Denoiser:
    """A denoiser with fresh weights, or on the device "meta" where they are left out (`without_weights`).

    Args:
        description: {"kind": "package:Name", "arguments": {...}}; the arguments are plain values.

    Raises:
        UsageError: for a kind whose package is not installed; names it.
        DistillkitError: for arguments that do not fit.
    """
    kind, arguments = description.get("kind", ""), description.get("arguments", {})
    if not isinstance(kind, str) or not isinstance(arguments, Mapping):
        raise DistillkitError(
            f"a network is described by a kind and arguments, not by {short(kind)}, {short(arguments)}"
        )
    offered = registry().by_kind("networks", kind)
    arguments = dict(arguments)
    place = torch.device("meta") if weights_left_out() else nullcontext()
    with blaming(f"the network {kind}", offered.origin, "cannot be built from its arguments"), place:
        denoiser = offered.value(**arguments)
    if not isinstance(denoiser, Denoiser):
        raise DistillkitError(f"the network {kind} ({offered.origin}) is a {type(denoiser).__name__}, not a Denoiser")
    denoiser.description = {"kind": offered.kind, "arguments": arguments}
    return placed(denoiser)


def built_light(description: Mapping[str, Any]) -> Denoiser:
    """The denoiser of a description on the device "meta", without memory for its weights; with memory, where a plugin's
    network may need it to be built.

    Raises:
        UsageError, DistillkitError: as `build_denoiser`.
    """
    try:
        with torch.device("meta"):
            return build_denoiser(description)
    except UsageError:
        raise
    except DistillkitError:
        return build_denoiser(description)


def described_weights(description: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Names and shapes of the weights of a network before memory is asked for them, on the device "meta"; None where a
    plugin's network may need real memory to be built.

    Raises:
        UsageError, DistillkitError: as `build_denoiser`, and for too many parameters.
    """
    try:
        with torch.device("meta"):
            denoiser = build_denoiser(description)
    except UsageError:
        raise
    except DistillkitError:
        if str(description.get("kind", "")).startswith(f"{BUILT_IN}:"):
            raise
        return None
    if (count := sum(p.numel() for p in denoiser.parameters())) > MOST_PARAMETERS:
        raise DistillkitError(
            f"the network {description.get('kind')} is described with {count:,} parameters; at most "
            f"{MOST_PARAMETERS:,} are built"
        )
    return dict(denoiser.state_dict())


def check_kinds(
    description: Mapping[str, Any], shape: Sequence[int], conditioner: Conditioner | None, codec: Codec | None
) -> None:
    """Refuse a network of distillkit's own that its description gives other samples or classes than it takes.

    Raises:
        DistillkitError: naming the argument and both values.
    """
    kind, arguments = str(description.get("kind", "")), description.get("arguments", {})
    network = arguments.get("network", {}) if isinstance(arguments, Mapping) else {}
    if not kind.startswith(f"{BUILT_IN}:") or not isinstance(network, Mapping):
        return
    takes, size = network.get("in_channels"), network.get("img_resolution")
    if takes is not None and takes not in (shape[0], PACKED.get(kind, 1) * shape[0]):
        raise DistillkitError(f"the network {kind} takes in_channels {takes}, and its samples are {_by(shape)}")
    if size is not None and any(length != size for length in shape[1:]):
        raise DistillkitError(f"the network {kind} has img_resolution {size}, and its samples are {_by(shape)}")
    labels = network.get("label_dim", network.get("num_class_embeds"))
    if isinstance(conditioner, ClassLabels) and labels and conditioner.classes > int(labels):
        raise DistillkitError(f"the network {kind} knows {labels} classes, and its conditioner {conditioner.classes}")
    if codec and len(codec.decoded_shape(tuple(shape))) != {"images": 3, "video": 4, "points": 1}[codec.content]:
        raise DistillkitError(f"samples {_by(shape)} are no {codec.content}, which the codec makes of them")


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def changed_network(description: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A network's description with other arguments: the way to a smaller student.

    Args:
        changes: argument -> value; an argument of the inner network ("model_channels") is found in nested mappings.

    Raises:
        UsageError: for an argument that the description does not have; names those it has.
    """
    arguments = _with_changes(description.get("arguments", {}), changes)
    if left := changes.keys() - set(_names(arguments)):
        known = ", ".join(sorted(set(_names(description.get("arguments", {})))))
        raise UsageError(f"{description.get('kind')} has no argument {sorted(left)[0]!r}; it has {known}")
    return {**description, "arguments": arguments}


def with_guidance_input(denoiser: Denoiser) -> Denoiser:
    """A denoiser with the same weights whose network also takes a guidance weight, the condition's field `guidance`
    (B,): the same function until it is trained, as what is added starts at zero. Itself where it takes one already.

    Raises:
        UsageError: for a network that cannot.
    """
    if denoiser.takes_guidance:
        return denoiser
    added = getattr(getattr(denoiser, "model", None), "arguments_for_guidance", None)
    if not added or denoiser.description is None:
        name = type(getattr(denoiser, "model", denoiser)).__name__
        raise UsageError(
            f"the network {name} can have no input for a guidance weight, as diffusers' UNet2DConditionModel can and "
            "FLUX.1-dev has: leave --guidance-max out, and one weight is learnt in for all"
        )
    arguments = denoiser.description["arguments"]
    network = {**arguments["network"], **added}
    description = {**denoiser.description, "arguments": {**arguments, "network": network}}
    if denoiser.base is not None:
        return _on_the_same_base(denoiser, description)
    made = build_denoiser(description)
    given = dict(denoiser.state_dict())
    zero = {name: torch.zeros_like(value) for name, value in made.state_dict().items() if name not in given}
    first = next(denoiser.parameters())
    made.to(device=first.device, dtype=first.dtype).load_state_dict({**given, **zero})
    return made.train(denoiser.training)


def _on_the_same_base(denoiser: Denoiser, description: Mapping[str, Any]) -> Denoiser:
    """The network of a description that has all the weights of a denoiser on a base, and more, on that base with the
    same adapters; what it has more is zero, and trained as it is."""
    assert denoiser.base is not None
    with torch.device("meta"):
        made = build_denoiser(description)
    if not on_base(made, denoiser.base):
        raise DistillkitError(
            f"the network {description.get('kind')} lacks weights of the one that it is to be made of"
        )
    if denoiser.adapter is not None:
        made = adapted(made, denoiser.adapter)
    given, first = dict(denoiser.state_dict()), next(denoiser.parameters())
    zero = {
        name: torch.zeros(value.shape, dtype=torch.float32, device=first.device)
        for name, value in made.state_dict().items()
        if name not in given
    }
    made.load_state_dict({**{name: value.clone() for name, value in given.items()}, **zero}, assign=True)
    for name in zero:
        above, _, last = name.rpartition(".")
        made.get_submodule(above)._parameters[last].requires_grad_(True)  # type: ignore[union-attr]
    return made.train(denoiser.training)


def merged(denoiser: Denoiser) -> Denoiser:
    """A frozen network of its own with the weights of one that has adapters, added to what they adapt; itself where it
    has none. What it is made of is not changed.

    Raises:
        UsageError, DistillkitError: as `build_denoiser`.
    """
    if adapted_in(denoiser) is None:
        return denoiser
    state = merged_weights(denoiser)
    made = built_light(denoiser.description or {})
    made.load_state_dict(state, assign=True)
    return made.requires_grad_(False).train(denoiser.training)


def _with_changes(arguments: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: changes[key] if key in changes else _with_changes(value, changes) if isinstance(value, Mapping) else value
        for key, value in arguments.items()
    }


def _names(arguments: Mapping[str, Any]) -> list[str]:
    inner = [name for value in arguments.values() if isinstance(value, Mapping) for name in _names(value)]
    return [*arguments, *inner]


def own_part(part: Conditioner | Codec) -> dict[str, Any]:
    """The description of one of distillkit's own conditioners and codecs, as `Registry.describe` makes it.

    For descriptions that are written while plugins are being loaded, when there is no registry to ask yet.
    """
    return {"kind": f"{BUILT_IN}:{type(part).__name__}", **part.model_dump(mode="json")}
