"""Which files hold a diffusers model's weights: whole, in shards, or as a variant such as fp16."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit.dtypes import HALF
from distillkit.errors import DistillkitError, UsageError
from distillkit.files import sha256
from distillkit.models.foreign.read import read_foreign
from distillkit.models.foreign.records import Refused, is_state_dict, load_tensors
from distillkit.reading import read_model
from distillkit.weight_files import LARGEST_INDEX, ShardIndex, hash_of_files

WHOLE = (
    "diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.bin", "pytorch_model.bin",
)  # fmt: skip
"""Of diffusers' networks, and of the text encoders of transformers."""
PLAIN = "diffusion_pytorch_model.safetensors, or its shards with their .index.json"
VARIANTS = {dtype: name for name, dtype in HALF.items()}
"""The variants that hold weights in a type."""
_STEM, _ENDING = "(diffusion_pytorch_model|pytorch_model|model)", "(safetensors|bin)"
_INDEX = re.compile(rf"{_STEM}\.{_ENDING}\.index(\.(?P<variant>[\w-]+))?\.json")
_VARIANT = re.compile(rf"{_STEM}\.(?P<variant>(?!.*-of-)[\w-]+)\.{_ENDING}")
_OTHERS = (
    (r"flax_model\.msgpack|.*\.msgpack", "weights of Flax alone; save the model from PyTorch (save_pretrained)"),
    (r".*\.onnx", "an ONNX model alone, which cannot be trained; the PyTorch weights are needed"),
    (r"pytorch_lora_weights\..*|adapter_model\..*", "a LoRA alone; fuse it into its model (fuse_lora) and save that"),
    (r".*\.ckpt", "a checkpoint file alone; name the file itself, or save the model as a diffusers folder"),
)


@dataclass(frozen=True)
class Found:
    """The files with the weights; `index` says which tensor is in which shard, `variant` is "" for the plain ones."""

    files: tuple[str, ...]
    index: str = ""
    variant: str = ""

    @property
    def patterns(self) -> tuple[str, ...]:
        """Shell patterns of an index and its shards."""
        if not self.index:
            return ()
        stem, ending, *_ = self.index.split(".")
        return (self.index, f"{stem}{'.' if self.variant else ''}{self.variant}-*-of-*.{ending}")

    def among(self, names: Collection[str]) -> list[str]:
        """Those of a folder's files that hold the weights, an index and its shards among them."""
        return [name for name in names if name in self.files or any(fnmatch(name, p) for p in self.patterns)]


def chosen(names: Collection[str], dtype: torch.dtype = torch.float32) -> Found | None:
    """The weights among the names of a model folder's files, for use in `dtype`; None where there are none.

    The variant that is named after `dtype` comes first, for float32 the plain ones; then the plain ones and other
    variants, whole before sharded, safetensors first.
    """
    wanted, ranked = VARIANTS.get(dtype, ""), []
    for name in names:
        index = _INDEX.fullmatch(name)
        parts = index or _VARIANT.fullmatch(name)
        if not parts and name not in WHOLE:
            continue
        variant = (parts["variant"] or "") if parts else ""
        found = Found(() if index else (name,), name if index else "", variant)
        safe = "safetensors" in name
        rank = (variant != wanted, variant != "", index is not None, variant == "non_ema", not safe, variant, name)
        ranked.append((rank, found))
    return min(ranked, key=lambda one: one[0])[1] if ranked else None


def read_weights(
    folder: Path, dtype: torch.dtype = torch.float32, among: Collection[str] = ()
) -> tuple[dict[str, Tensor], str, str]:
    """All tensors of a model folder, floating point ones in `dtype`, a hash of the files, and which they are, for
    people.

    Args:
        dtype: the variant of that type is read where there is one.
        among: the names of files that may be read; all by default.

    Raises:
        UsageError: when there are none; says what is there instead.
        DistillkitError: when they are damaged, refused or incomplete.
    """
    found = _chosen_in(folder, dtype, among)
    note = f"the {found.variant} variant of the weights in {folder}" if found.variant else ""
    index = _index_of(folder, found)
    if index is None:
        return read_state(folder / found.files[0], dtype), _hash_of(folder, found), note
    tensors: dict[str, Tensor] = {}
    for shard in index.shards:
        path = folder / shard
        if not path.is_file():
            raise DistillkitError(f"{folder / found.index} lists the shard {shard}, which is not there; fetch it too")
        own = {name for name, file in index.weight_map.items() if file == shard}
        held = read_state(path, dtype)
        if missing := sorted(own - held.keys()):
            raise DistillkitError(f"{path} does not hold {missing[0]}, which {found.index} says is there")
        tensors |= {name: held[name] for name in own}
    return tensors, _hash_of(folder, found), note


def weights_sha256(folder: Path) -> str:
    """The hash of the files that hold a model folder's weights: of the file, or of all shards' names and hashes.

    Raises:
        UsageError: when there are none.
    """
    return _hash_of(folder, _chosen_in(folder))


def _hash_of(folder: Path, found: Found) -> str:
    index = _index_of(folder, found)
    if index is None:
        return sha256(folder / found.files[0])
    return hash_of_files({shard: sha256(folder / shard) for shard in index.shards})


def _chosen_in(folder: Path, dtype: torch.dtype = torch.float32, among: Collection[str] = ()) -> Found:
    names = [place.name for place in folder.iterdir()] if folder.is_dir() else []
    found = chosen([name for name in names if not among or name in among], dtype)
    if found is None:
        raise UsageError(_absent(folder))
    return found


def _index_of(folder: Path, found: Found) -> ShardIndex | None:
    return read_model(folder / found.index, ShardIndex, most=LARGEST_INDEX) if found.index else None


def read_state(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A file with a state dict, floating point tensors in `dtype`; nothing in it is executed.

    Raises:
        DistillkitError: when it is damaged, or refused.
    """
    foreign = read_foreign(path)
    if not is_state_dict(foreign.value):
        raise Refused(f"{path}: refused: it is not a state dict. Nothing in the file was run.")
    tensors: dict[str, Any] = {str(name): tensor for name, tensor in foreign.value.items()}
    read = load_tensors(tensors, 2 * foreign.size)
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in read.items()}


def _absent(folder: Path) -> str:
    names = sorted(place.name for place in folder.iterdir())[:1000] if folder.is_dir() else []
    for pattern, what in _OTHERS:
        if here := [name for name in names if re.fullmatch(pattern, name)]:
            return f"{folder} holds {here[0]}: {what}"
    if shards := [name for name in names if "-of-" in name and name.endswith((".safetensors", ".bin"))]:
        return (
            f"{folder} holds shards ({shards[0]}, ...) without their index; fetch the file *.index.json beside them too"
        )
    return (
        f"{folder} has no weights; {PLAIN} is needed "
        "(a pipeline without those of its network is for `distillkit teachers train --like PIPELINE`)"
    )
