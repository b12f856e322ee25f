"""Zip files as EDM's dataset_tool.py writes them, and a network in the place of Inception, both by formulas."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from distillkit.evaluation.extractor import INCEPTION_FILE


def pictures(count: int, size: int = 32, channels: int = 3) -> np.ndarray:
    """(N, H, W, C) uint8: no two of them and no two channels alike."""
    n, y, x, c = np.ogrid[:count, :size, :size, :channels]
    return ((n * 29 + y * (3 + c * 4) + x * (5 + n % 7) + x * y * (c + 1) + c * 67) % 256).astype(np.uint8)


def write_zip(path: Path, images: np.ndarray, form: str = "png", *, backwards: bool = False) -> Path:
    """Stored, uncompressed PNG (or JPEG) images under EDM's names, with labels in dataset.json."""
    names = [f"{k // 1000:05d}/img{k:08d}.{form}" for k in range(len(images))]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for k in reversed(range(len(images))) if backwards else range(len(images)):
            packed = io.BytesIO()
            picture = Image.fromarray(images[k, ..., 0] if images.shape[-1] == 1 else images[k])
            picture.save(packed, "PNG" if form == "png" else "JPEG", **({"compress_level": 0} if form == "png" else {}))
            archive.writestr(names[k], packed.getvalue())
        archive.writestr("dataset.json", json.dumps({"labels": [[name, k % 10] for k, name in enumerate(names)]}))
    return path


class Projection(torch.nn.Module):
    """Means of 4 x 4 patches, and a fixed matrix of rational numbers."""

    def __init__(self) -> None:
        super().__init__()
        i, j = torch.arange(48, dtype=torch.float64)[:, None], torch.arange(2048, dtype=torch.float64)
        self.register_buffer("weight", (((i * 37 + j * (i + 101)) % 211 - 105) / 105).float())

    def forward(self, x):
        means = torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)
        return torch.relu(means @ self.weight)


class InceptionsPlace(torch.nn.Module):
    """With the interface of the published TorchScript file."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Projection()

    def forward(self, x, return_features: bool = False):
        return self.layers((x.to(torch.float32) - 128) / 128)


def write_network(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(InceptionsPlace().eval()).save(str(folder / INCEPTION_FILE))
    return folder / INCEPTION_FILE
