"""From a foreign file of weights to a teacher folder: read once, safely; the original is never needed again."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit.contracts.teacher import TeacherSpec
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import sha256
from distillkit.models.adm import layout as adm
from distillkit.models.build import build_denoiser
from distillkit.models.dit import layout as dit
from distillkit.models.edm import pickles
from distillkit.models.edm2 import pickles as edm2
from distillkit.models.edm2.names import ours
from distillkit.models.foreign.read import Foreign, read_foreign
from distillkit.models.foreign.records import Instance, Refused, is_state_dict, load_tensors
from distillkit.models.original import Layout, Original, Read
from distillkit.models.store.bare import LORA, kind_of, without_network
from distillkit.models.store.card import TeacherOffer
from distillkit.models.store.folder import check_fit, write_teacher
from distillkit.names import name_from
from distillkit.registry import registry
from distillkit.text import short

log = logging.getLogger(__name__)

STATE_DICTS = ("ema", "state_dict", "model_state_dict", "ema_state_dict", "model", "net", "module")
"""Keys under which `torch.save` files keep a state dict, an average of weights first."""
AVERAGES = ("ema", "ema_state_dict")
WRAPPERS = ("module.", "_orig_mod.")
"""What networks that are spread or compiled put before the names of their weights."""
LAYOUTS = (Layout(adm.SIGNS, adm.read_adm), Layout(dit.SIGNS, dit.read_dit))
"""Programs whose weights are known by their names and shapes, without a description beside them."""


def convert(
    path: Path,
    folder: Path,
    *,
    name: str,
    like: TeacherSpec | None = None,
    by_name: TeacherSpec | None = None,
    licence: str = "",
    source: str = "",
    expected: TeacherSpec | None = None,
    asked: Mapping[str, str] | None = None,
    say: Callable[[str], None] = log.warning,
) -> TeacherSpec:
    """Write a teacher folder from a network pickle of EDM's or EDM2's, a `torch.save` file or a safetensors file.

    Args, Raises: as `read_original`.
    """
    spec, state = read_original(
        path,
        name=name,
        like=like,
        by_name=by_name,
        licence=licence,
        source=source,
        expected=expected,
        asked=asked,
        say=say,
    )
    return write_teacher(folder, state, spec)


def read_original(
    path: Path,
    *,
    name: str,
    like: TeacherSpec | None = None,
    by_name: TeacherSpec | None = None,
    licence: str = "",
    source: str = "",
    expected: TeacherSpec | None = None,
    asked: Mapping[str, str] | None = None,
    say: Callable[[str], None] = log.warning,
) -> tuple[TeacherSpec, dict[str, Tensor]]:
    """What a file holds: the facts of its network, and its weights in float32 by the names of its denoiser.

    Args:
        name: of the teacher.
        like: whose network the weights are for, where the file holds weights alone.
        by_name: the facts of the published teacher whose file it is by its name, which say what the weights of other
            programs do not.
        licence, source: recorded in teacher.json; the file's sha256 is added to the source.
        expected: the facts of the published teacher of that name; another size or number of classes is refused, other
            arguments are remarked.
        asked: settings of the network that its weights do not say, by name.
        say: hears what was read, left out and assumed, line by line.

    Raises:
        UsageError: when the file holds weights alone and `like` is not given, or a LoRA, or for a setting that is
            missing or unknown.
        DistillkitError: when it is refused, or its weights do not fit its network.
    """
    foreign = read_foreign(path)
    try:
        read = _read(path, foreign, name_from(name), like, expected or by_name, asked or {})
    except Refused as refused:
        raise Refused(f"{path}: refused: {refused}. Nothing in the file was run.") from refused.__cause__
    spec = read.spec
    if expected is not None:
        _compare(path, spec, expected)
    with torch.device("meta"):
        wanted = build_denoiser(spec.network).state_dict()
    state = {
        key: value.float() if value.is_floating_point() else value
        for key, value in _renamed(read.state, wanted).items()
    }
    try:
        check_fit(wanted, state, str(path), f"the network of {like.name}" if like else "their network")
    except DistillkitError as error:
        raise DistillkitError(f"{error}{_likely(state)}") from error
    for note in read.notes:
        say(note)
    digest = f"sha256 of the original {sha256(path)}"
    return spec.model_copy(update={"licence": licence, "source": f"{source or path.name} ({digest})"}), state


def _read(
    path: Path, foreign: Foreign, name: str, like: TeacherSpec | None, known: TeacherSpec | None,
    asked: Mapping[str, str],
) -> Read:  # fmt: skip
    """The facts and the weights in a file.

    Args:
        known: the published teacher whose file it is.
    """
    network = pickles.find_network(foreign.value, (pickles.PRECONDITIONING, *edm2.PRECONDITIONINGS))
    if network is not None:
        is_edm2 = network.class_name in edm2.PRECONDITIONINGS
        _nothing_asked(path, {key: value for key, value in asked.items() if not (is_edm2 and key == edm2.VAE)})
        state = load_tensors(pickles.weights(network), 2 * foreign.size)
        if not is_edm2:
            return Read(pickles.describe(network, name), state, ())
        spec, notes = edm2.describe(network, edm2.find_encoder(foreign.value), name, asked.get(edm2.VAE))
        return Read(spec, state, notes)
    state, notes = _state_dict(foreign)
    for layout in LAYOUTS:
        if state.keys() >= set(layout.signs):
            read = layout.read(Original(path, name, state, _record(foreign.value), like or known, asked))
            return Read(read.spec, read.state, (*read.notes[:1], *notes, *read.notes[1:]))
    _nothing_asked(path, asked)
    if like is None or kind_of(state) == LORA:
        raise without_network(path, state)
    return Read(like.model_copy(update={"name": name, "weights_sha256": ""}), state, notes)


def _nothing_asked(path: Path, asked: Mapping[str, str]) -> None:
    if asked:
        raise UsageError(
            f"--set {next(iter(asked))}: nothing can be set of {path}: a network of its kind says it itself"
        )


def _state_dict(foreign: Foreign) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights by their names without wrappers', and what is to be said of where they were and of their type."""
    value = foreign.value
    for key in (None, *STATE_DICTS):
        candidate = value if key is None else value.get(key) if isinstance(value, Mapping) else None
        if is_state_dict(candidate) and candidate:
            bare = Counter(_bare(str(name)) for name in candidate)
            if twice := [name for name, count in bare.items() if count > 1]:
                raise Refused(f"it holds {short(twice[0])} more than once, with and without {' or '.join(WRAPPERS)}")
            state = load_tensors({_bare(str(name)): tensor for name, tensor in candidate.items()}, 2 * foreign.size)
            return state, tuple(filter(None, (_whence(value, key), _types(state))))
    raise Refused("it holds neither an EDM network nor a state dict")


def _bare(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _whence(value: Any, key: str | None) -> str:
    """Under which key the weights were, and what else there is."""
    if key is None:
        return ""
    others = ", ".join(short(other) for other in value if other != key) or "nothing"
    what = "the average of the weights" if key in AVERAGES else "the weights; there is no average of them"
    return f"read: {key}, {what}; left out: {others}"


def _types(state: Mapping[str, Tensor]) -> str:
    """What is said of weights that are not in float32."""
    kinds = Counter(str(value.dtype).removeprefix("torch.") for value in state.values() if value.is_floating_point())
    others = [f"{count:,} weights in {kind}" for kind, count in kinds.items() if kind != "float32"]
    return f"{', '.join(others)}: kept in float32" if others else ""


def _record(value: Any) -> Mapping[str, Any]:
    """The options of the training that a checkpoint keeps beside its weights; none where it keeps none."""
    options = value.get("args") if isinstance(value, Mapping) else None
    found = options.state if isinstance(options, Instance) else options if isinstance(options, Mapping) else {}
    plain = (str, int, float, bool)
    return {name: option for name, option in found.items() if isinstance(name, str) and isinstance(option, plain)}


def _renamed(state: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """Names with `model.` where the inner network alone was saved, and EDM2's as they are here."""
    if not any(name in wanted for name in state):
        state = ours(state)
    if not any(name in wanted for name in state) and any(f"model.{name}" in wanted for name in state):
        return {f"model.{name}": value for name, value in state.items()}
    return dict(state)


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
    numbers = sum(value.numel() for value in state.values())
    for name, offer in registry().named("teachers").items():
        if not isinstance(offer.value, TeacherOffer) or offer.value.card.variant_of:
            continue
        # Networks are built, on "meta", where their size fits: buffers are few numbers beside the parameters.
        if not (known := offer.value.card.parameters) or 0 <= numbers - known <= known // 10:
            with torch.device("meta"):
                wanted = build_denoiser(offer.value.card.spec.network).state_dict()
            if {key: value.shape for key, value in wanted.items()} == shapes:
                return f"\nThey fit the network of {name}"
    return ""
