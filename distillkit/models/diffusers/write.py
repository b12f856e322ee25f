"""Pipelines of diffusers with other weights in some of their components."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit.files import write_json
from distillkit.models.diffusers.folder import network_prefix, pipeline_at
from distillkit.models.diffusers.weights import chosen
from distillkit.reading import read_mapping
from distillkit.tensors import Converted, Stored
from distillkit.weight_files import SUFFIX, write_weights

WEIGHTS, TEXT_WEIGHTS = "diffusion_pytorch_model.safetensors", "model.safetensors"
TEXTS = (".json", ".txt", ".model")


@dataclass(frozen=True)
class Replaced:
    """What a component of a pipeline becomes.

    Args:
        weights: by the names in its file; written in float32.
        changes: in its config.json.
        file: of the weights.
    """

    weights: Mapping[str, Tensor | Stored]
    changes: Mapping[str, Any] = field(default_factory=dict)
    file: str = WEIGHTS


def network_of(like: Path, denoiser: Mapping[str, Tensor | Stored]) -> dict[str, Replaced]:
    """The network of a pipeline with the weights of a denoiser.

    Args:
        denoiser: by the denoiser's names.
    """
    name = pipeline_at(like).network.name
    prefix = network_prefix(name)
    return {name: Replaced({k.removeprefix(prefix): v for k, v in denoiser.items() if k.startswith(prefix)})}


def write_pipeline(
    folder: Path, like: Path, replaced: Mapping[str, Replaced], *, without: Collection[str] = ()
) -> dict[str, str]:
    """Write a pipeline with all parts of another but some; the sha256 of their weights, by component.

    Configurations, vocabularies and one file format of each component's weights are copied, nothing else.

    Args:
        folder: of the new pipeline.
        like: of the other.
        replaced: what is not copied, by component.
        without: components of which no weights are written: they have to be trained anew.
    """
    for place in [like, *sorted(path for path in like.iterdir() if path.is_dir())]:
        files = [path.name for path in place.iterdir() if path.is_file()]
        own = place == like or place.name in (*replaced, *without)
        found = None if own else chosen(files)
        kept = [*(name for name in files if name.endswith(TEXTS)), *(found.among(files) if found else ())]
        target = folder / place.relative_to(like)
        target.mkdir(parents=True, exist_ok=True)
        for name in kept:
            if not (own and name.endswith(".index.json")):
                shutil.copyfile(place / name, target / name)
    hashes = {}
    for component, part in replaced.items():
        state = {name: Converted(value, torch.float32) for name, value in part.weights.items()}
        hashes[component] = write_weights(folder / component, part.file.removesuffix(SUFFIX), state)
        if part.changes:
            config = folder / component / "config.json"
            write_json(config, {**read_mapping(config), **part.changes})
    return hashes
