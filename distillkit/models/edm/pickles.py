"""What EDM's network pickles hold: constructor arguments and weights, taken from inert records."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from distillkit.contracts.codec import Pixels
from distillkit.contracts.conditioner import ClassLabels, Unconditional
from distillkit.contracts.teacher import TeacherSpec
from distillkit.diffusion.schedules import EDMSchedule
from distillkit.models.build import own_part
from distillkit.models.edm.families import FAMILIES, described
from distillkit.models.foreign.records import Instance, Refused, StoredTensor
from distillkit.reading import first_problem

PRECONDITIONING = "EDMPrecond"
OTHERS = {
    "VPPrecond": "the VP preconditioning of EDM's baseline checkpoints",
    "VEPrecond": "the VE preconditioning of EDM's baseline checkpoints",
    "iDDPMPrecond": "the iDDPM preconditioning of EDM's baseline checkpoints",
}
PLACES = ("ema", "net", "model")
"""Keys under which training programs keep the network, the average of its weights first."""
CONSTRUCTOR = (
    "img_resolution",
    "img_channels",
    "label_dim",
    "use_fp16",
    "sigma_min",
    "sigma_max",
    "sigma_data",
    "model_type",
)
BUILT = frozenset(kind for kind, _ in FAMILIES.values())
"""Networks that can be built."""
DEEPEST, MOST = 32, 100_000
LONGEST = 200
MOST_ENTRIES = 1_000_000
"""Looked at in a tree of modules, whose branches may be one and the same module again and again."""


def find_network(value: Any, known: Collection[str] = (PRECONDITIONING,)) -> Instance | None:
    """The network in what a pickle holds; None if it holds no persistent object.

    Args:
        known: classes of networks that can be built.

    Raises:
        Refused: for a network of another preconditioning, by name.
    """
    found = [value] if isinstance(value, Instance) else []
    if isinstance(value, Mapping):
        found = [value[place] for place in PLACES if isinstance(value.get(place), Instance)]
    if not found:
        return None
    network: Instance = found[0]
    if network.class_name in known:
        return network
    what = OTHERS.get(network.class_name, "a network that distillkit does not know")
    raise Refused(
        f"its network is of class {network.class_name[:80]}, {what}; what can be built is {' and '.join(known)}"
    )


def arguments_of(network: Instance, positional: Sequence[str]) -> dict[str, Any]:
    """The arguments that a network's constructor was called with, as the file records them.

    Args:
        positional: their names, of those that may be given without one.

    Raises:
        Refused: when they are missing or not plain values.
    """
    given, named = network.state.get("_init_args", ()), network.state.get("_init_kwargs")
    if not isinstance(named, Mapping) or not isinstance(given, (tuple, list)) or len(given) > len(positional):
        raise Refused("it does not record the arguments of its network")
    if len(named) > 100 or not all(isinstance(key, str) and len(key) <= LONGEST for key in named):
        raise Refused("the arguments of its network are malformed")
    arguments = {**dict(zip(positional, given, strict=False)), **named}
    for key, value in arguments.items():
        if not _plain(value):
            raise Refused(f"its network's argument {key[:80]} is not a plain value")
    return arguments


def describe(network: Instance, name: str) -> TeacherSpec:
    """The teacher's facts from the arguments that its constructor was called with, as the file records them.

    Raises:
        Refused: when they are missing or not plain values.
    """
    arguments = arguments_of(network, CONSTRUCTOR)
    outer = {key: arguments.pop(key) for key in CONSTRUCTOR if key in arguments}
    try:
        resolution, channels = int(outer["img_resolution"]), int(outer["img_channels"])
        classes, kind = int(outer.get("label_dim", 0)), str(outer.get("model_type", "DhariwalUNet"))
        sigma_data, dropped = float(outer.get("sigma_data", 0.5)), float(arguments.get("label_dropout") or 0)
        low, high = float(outer.get("sigma_min", 0)), float(outer.get("sigma_max", float("inf")))
        if not low >= 0 or not high > 0:
            raise ValueError(f"sigma_min is {low} and sigma_max {high}")
        schedule = EDMSchedule(sigma_min=max(0.002, low), sigma_max=min(80.0, high))
    except ValidationError as error:
        raise Refused(f"its network's arguments: {first_problem(error)}") from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Refused(f"its network's arguments are incomplete ({error})") from error
    sizes = 0 < resolution <= 4096 and 0 < channels <= 64 and 0 <= classes <= 10**6 and 0 < sigma_data < 10**6
    if kind not in BUILT or not sizes:
        raise Refused(f"its network {kind[:80]}, {channels} x {resolution} x {resolution}, cannot be built")
    inner = {"img_resolution": resolution, "in_channels": channels, "out_channels": channels, "label_dim": classes}
    return TeacherSpec(
        name=name,
        shape=(channels, resolution, resolution),
        network=described(kind, {**inner, **arguments}, sigma_data, schedule),
        conditioner=own_part(ClassLabels(classes=classes, null_label=dropped > 0) if classes else Unconditional()),
        codec=own_part(Pixels()),
        solver_steps=18 if resolution <= 32 else 40,
    )


def weights(network: Instance) -> dict[str, StoredTensor]:
    """The state dict: parameters and persistent buffers by their dotted names.

    Raises:
        Refused: for a tree of modules that is deeper or wider than any network's, or malformed.
    """
    found: dict[str, StoredTensor] = {}
    for name, value in _walk(network, "", DEEPEST, iter(range(MOST_ENTRIES))):
        if len(found) >= MOST:
            raise Refused(f"its network has more than {MOST:,} tensors")
        found[name] = value
    return found


def _walk(module: Any, above: str, depth: int, left: Iterator[int]) -> Iterator[tuple[str, StoredTensor]]:
    if not isinstance(module, Instance) or depth == 0:
        raise Refused(f"its module {above[:80] or 'network'} is not a module")
    kept = module.state.get("_non_persistent_buffers_set", ())
    kept = kept if isinstance(kept, set | frozenset) else ()
    for group in ("_parameters", "_buffers"):
        for name, value in _entries(module, group, left):
            if value is None or (group == "_buffers" and name in kept):
                continue
            if not isinstance(value, StoredTensor):
                raise Refused(f"its {above[:80]}{name[:80]} is not a tensor")
            yield f"{above}{name}", value
    for name, child in _entries(module, "_modules", left):
        if child is not None:
            yield from _walk(child, f"{above}{name}.", depth - 1, left)


def _entries(module: Instance, group: str, left: Iterator[int]) -> Iterator[tuple[str, Any]]:
    entries = module.state.get(group, {})
    if not isinstance(entries, Mapping):
        raise Refused(f"a module's {group} are malformed")
    next(left, None)
    for name, value in entries.items():
        if next(left, None) is None:
            raise Refused(f"its tree of modules has more than {MOST_ENTRIES:,} entries")
        if not isinstance(name, str) or len(name) > LONGEST:
            raise Refused(f"a module's {group} are malformed")
        yield name, value


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= 64 and all(_scalar(item) for item in value)
    return _scalar(value)


def _scalar(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= LONGEST
    if isinstance(value, float):
        return math.isfinite(value) or value == math.inf
    return value is None or (isinstance(value, int) and value.bit_length() <= 64)
