"""A teacher on disk: `model.safetensors` and `teacher.json`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.errors import DistillkitError
from distillkit.files import sha256, write_json
from distillkit.models.build import build_denoiser, check_kinds, described_weights
from distillkit.models.weightless import weights_left_out
from distillkit.reading import Missing, Unreadable, check_format, read_mapping, validated
from distillkit.registry import registry
from distillkit.tensors import Stored, read_tensors
from distillkit.weight_files import SUFFIX, write_weights

WEIGHTS, SPEC = "model.safetensors", "teacher.json"


def is_teacher_folder(folder: Path) -> bool:
    return (folder / SPEC).is_file() and (folder / WEIGHTS).is_file()


def read_spec(path: Path) -> TeacherSpec:
    """The facts in a teacher.json.

    Raises:
        DistillkitError: when it is damaged.
    """
    try:
        values = read_mapping(path)
        check_format({"format": values.pop("format", 1)}, 1, str(path))
        return validated(TeacherSpec, values, str(path))
    except Missing:
        raise
    except Unreadable as error:
        raise Unreadable(
            f"{error}. If another version of distillkit wrote it, fetch, convert or train the teacher anew."
        ) from error


def read_teacher(spec_path: Path, weights_path: Path) -> Teacher:
    """A teacher from its two files; from the first alone where weights are left out (`without_weights`).

    Raises:
        UsageError: when the package of its network, conditioner or codec is not installed; names it.
        DistillkitError: when they are damaged or do not fit together.
    """
    spec = read_spec(spec_path)
    left_out = weights_left_out()
    state = {} if left_out else read_tensors(weights_path)
    if not left_out and sha256(weights_path) != spec.weights_sha256:
        raise DistillkitError(f"{weights_path} does not match the sha256 recorded in {spec_path.name}")
    try:
        denoiser = build_denoiser(spec.network) if left_out else denoiser_with(spec, state, str(weights_path))
        return teacher_with(spec, denoiser)
    except DistillkitError as error:
        raise type(error)(f"{spec_path}: {error}") from error


def teacher_with(spec: TeacherSpec, denoiser: Denoiser) -> Teacher:
    """The teacher of this denoiser with the conditioner and the codec that `spec` describes.

    Raises:
        UsageError: when the package of one of them is not installed; names it.
        DistillkitError: for a description that does not fit.
    """
    conditioner = registry().build("conditioners", spec.conditioner) if spec.conditioner else None
    codec = registry().build("codecs", spec.codec) if spec.codec else None
    check_kinds(spec.network, spec.shape, conditioner, codec)
    return Teacher(denoiser, spec, conditioner, codec)


def fresh_teacher(spec: TeacherSpec, seed: int) -> Teacher:
    """A teacher with random weights that depend on the seed alone; its spec has no hash of weights.

    Raises:
        UsageError, DistillkitError: as `teacher_with`, and for a network that cannot be built.
    """
    described_weights(spec.network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = build_denoiser(spec.network)
    return teacher_with(spec.model_copy(update={"weights_sha256": ""}), denoiser)


def write_teacher(folder: Path, weights: Mapping[str, Tensor | Stored], spec: TeacherSpec) -> TeacherSpec:
    """Write both files, the description last; returns the spec with the weights' hash.

    Args:
        weights: in memory, or in files, from which they are read one at a time.
    """
    found = write_weights(folder, WEIGHTS.removesuffix(SUFFIX), weights, shard_bytes=sys.maxsize)
    complete = spec.model_copy(update={"weights_sha256": found})
    write_json(folder / SPEC, complete.model_dump(mode="json"))
    return complete


Rename = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]
"""(weights by the names in a file, those that are expected) -> weights by the expected names."""


def denoiser_with(
    spec: TeacherSpec, state: Mapping[str, Tensor], origin: str, rename: Rename = lambda state, expected: dict(state)
) -> Denoiser:
    """The denoiser that `spec` describes, with these weights, loaded strictly.

    Raises:
        DistillkitError: naming the first differences, or the tensor that holds NaN or infinity.
    """
    # On "meta" nothing is allocated or initialised; the weights that were read become the parameters.
    with torch.device("meta"):
        denoiser = build_denoiser(spec.network)
    expected = denoiser.state_dict()
    state = rename(state, expected)
    check_fit(expected, state, origin)
    denoiser.load_state_dict(state, assign=True)
    return denoiser


def check_fit(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], origin: str, network: str = "their network"
) -> None:
    """Refuse weights that are not exactly the network's: names, shapes, kinds of numbers, finite numbers.

    Args:
        origin: of the weights, for the message.
        network: whose it is, for the message.

    Raises:
        DistillkitError: with the first differences.
    """
    differences = [f"missing: {name} {tuple(expected[name].shape)}" for name in expected.keys() - found.keys()]
    differences += [f"not in the network: {name} {tuple(found[name].shape)}" for name in found.keys() - expected.keys()]
    differences += [
        f"{name}: {tuple(found[name].shape)} in the file, {tuple(expected[name].shape)} in the network"
        for name in expected.keys() & found.keys()
        if expected[name].shape != found[name].shape
    ]
    if differences:
        shown = "\n  ".join(sorted(differences)[:6])
        raise DistillkitError(
            f"the weights in {origin} do not fit {network} ({len(differences)} differences):\n  {shown}"
        )
    for name, value in found.items():
        if value.is_floating_point() != expected[name].is_floating_point():
            kinds = [str(tensor.dtype).removeprefix("torch.") for tensor in (value, expected[name])]
            raise DistillkitError(f"{origin}: the tensor {name} is of {kinds[0]}, and {kinds[1]} is due")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise DistillkitError(f"{origin}: the tensor {name} holds NaN or infinity")
