"""Pipelines of diffusers with another network's weights."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from distillkit.files import sha256, write_tensors
from distillkit.models.diffusers.folder import network_prefix, pipeline_at
from distillkit.models.diffusers.weights import chosen

WEIGHTS = "diffusion_pytorch_model.safetensors"
TEXTS = (".json", ".txt", ".model")


def write_pipeline(folder: Path, like: Path, weights: Mapping[str, Tensor]) -> str:
    """Write a pipeline with all parts of another but its network's weights; the sha256 of these.

    Configurations, vocabularies and one file format of each component's weights are copied, nothing else.

    Args:
        folder: of the new pipeline.
        like: of the other.
        weights: of the denoiser of its network, by the denoiser's names.
    """
    network = pipeline_at(like).network
    prefix = network_prefix(network.name)
    for place in [like, *sorted(path for path in like.iterdir() if path.is_dir())]:
        files = [path.name for path in place.iterdir() if path.is_file()]
        found = chosen(files) if place not in (like, network) else None
        kept = [*(name for name in files if name.endswith(TEXTS)), *(found.among(files) if found else ())]
        target = folder / place.relative_to(like)
        target.mkdir(parents=True, exist_ok=True)
        for name in kept:
            if not (place == network and name.endswith(".index.json")):
                shutil.copyfile(place / name, target / name)
    state = {
        name.removeprefix(prefix): value.detach().to("cpu", torch.float32).contiguous()
        for name, value in weights.items()
        if name.startswith(prefix)
    }
    path = folder / network.relative_to(like) / WEIGHTS
    write_tensors(path, state, {"format": "pt"})
    return sha256(path)
