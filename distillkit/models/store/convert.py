"""From a foreign file of weights to a teacher folder: read once, safely; the original is never needed again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit.contracts.teacher import TeacherSpec
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import sha256
from distillkit.models.build import build_denoiser
from distillkit.models.edm import pickles
from distillkit.models.foreign.read import Foreign, read_foreign
from distillkit.models.foreign.records import Refused, is_state_dict, load_tensors
from distillkit.models.store.bare import without_network
from distillkit.models.store.card import TeacherOffer
from distillkit.models.store.folder import check_fit, write_teacher
from distillkit.names import name_from
from distillkit.registry import registry

log = logging.getLogger(__name__)

STATE_DICTS = ("ema", "state_dict", "model_state_dict", "ema_state_dict", "model", "net", "module")
"""Keys under which `torch.save` files keep a state dict, an average of weights first."""


def convert(
    path: Path,
    folder: Path,
    *,
    name: str,
    like: TeacherSpec | None = None,
    licence: str = "",
    source: str = "",
    expected: TeacherSpec | None = None,
) -> TeacherSpec:
    """Write a teacher folder from an EDM network pickle, a `torch.save` file or a safetensors file.

    Args, Raises: as `read_original`.
    """
    spec, state = read_original(path, name=name, like=like, licence=licence, source=source, expected=expected)
    return write_teacher(folder, state, spec)


def read_original(
    path: Path,
    *,
    name: str,
    like: TeacherSpec | None = None,
    licence: str = "",
    source: str = "",
    expected: TeacherSpec | None = None,
) -> tuple[TeacherSpec, dict[str, Tensor]]:
    """What a file holds: the facts of its network, and its weights in float32 by the names of its denoiser.

    Args:
        name: of the teacher.
        like: whose network the weights are for, where the file holds weights alone.
        licence, source: recorded in teacher.json; the file's sha256 is added to the source.
        expected: the facts of the published teacher of that name; another size or number of classes is refused, other
            arguments are remarked.

    Raises:
        UsageError: when the file holds weights alone and `like` is not given.
        DistillkitError: when it is refused, or its weights do not fit its network.
    """
    foreign, name = read_foreign(path), name_from(name)
    try:
        network = pickles.find_network(foreign.value)
        if network is not None:
            spec = pickles.describe(network, name)
            state = load_tensors(pickles.weights(network), 2 * foreign.size)
        else:
            state = _state_dict(foreign)
            if like is None:
                raise UsageError(without_network(path, state))
            spec = like.model_copy(update={"name": name, "licence": licence, "weights_sha256": ""})
    except Refused as refused:
        raise Refused(f"{path}: refused: {refused}. Nothing in the file was run.") from refused.__cause__
    if expected is not None:
        _compare(path, spec, expected)
    with torch.device("meta"):
        wanted = build_denoiser(spec.network).state_dict()
    state = {
        key: value.float() if value.is_floating_point() else value for key, value in _renamed(state, wanted).items()
    }
    try:
        check_fit(wanted, state, str(path))
    except DistillkitError as error:
        raise DistillkitError(f"{error}{_likely(state)}") from error
    digest = f"sha256 of the original {sha256(path)}"
    return spec.model_copy(update={"licence": licence, "source": f"{source or path.name} ({digest})"}), state


def _state_dict(foreign: Foreign) -> dict[str, Tensor]:
    value = foreign.value
    for key in (None, *STATE_DICTS):
        candidate = value if key is None else value.get(key) if isinstance(value, Mapping) else None
        if is_state_dict(candidate) and candidate:
            return load_tensors({str(name): tensor for name, tensor in candidate.items()}, 2 * foreign.size)
    raise Refused("it holds neither an EDM network nor a state dict")


def _renamed(state: dict[str, Tensor], wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """Names without a wrapper's `module.`, and with `model.` where the inner network alone was saved."""
    state = {name.removeprefix("module."): value for name, value in state.items()}
    if not any(name in wanted for name in state) and any(f"model.{name}" in wanted for name in state):
        return {f"model.{name}": value for name, value in state.items()}
    return state


def _compare(path: Path, found: TeacherSpec, expected: TeacherSpec) -> None:
    """Refuse another model under a known name; remark on arguments that differ from the paper's."""
    makes = [(spec.shape, int(spec.conditioner.get("classes", 0))) for spec in (found, expected)]
    if makes[0] != makes[1]:
        (shape, classes), (wanted, wanted_classes) = makes
        raise DistillkitError(
            f"{path} is not {expected.name}: it makes samples {shape} of {classes} classes, not {wanted} of "
            f"{wanted_classes}"
        )
    theirs, ours = (spec.network["arguments"].get("network", {}) for spec in (found, expected))
    for key in sorted(ours.keys() & theirs.keys()):
        given = list(theirs[key]) if isinstance(theirs[key], tuple) else theirs[key]
        if given != ours[key] and key != "dropout":
            log.warning(
                "%s: its argument %s is %r; the catalogue has %r. The file's is used.", path, key, given, ours[key]
            )


def _likely(state: Mapping[str, Tensor]) -> str:
    """The known teacher that these weights would fit, if there is one."""
    shapes = {name: value.shape for name, value in state.items()}
    for name, offer in registry().named("teachers").items():
        if isinstance(offer.value, TeacherOffer):
            with torch.device("meta"):
                wanted = build_denoiser(offer.value.card.spec.network).state_dict()
            if {key: value.shape for key, value in wanted.items()} == shapes:
                return f"\nThey fit {name}: try --like {name}"
    return ""
