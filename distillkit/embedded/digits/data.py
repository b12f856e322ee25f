"""The embedded data set: scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, ten classes.

Source: "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, doi 10.24432/C50P49, CC BY 4.0. The original 17 grey levels are stored as round(v * 255 / 16).
"""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor

from distillkit.embedded.assets import asset_path


def load_digits() -> tuple[Tensor, Tensor]:
    """All images (1797, 1, 8, 8) uint8 in 0..255 and their labels (1797,) int64 in 0..9."""
    tensors = load_file(asset_path("digits8.safetensors"))
    return tensors["images"], tensors["labels"].long()


def split_digits(fold: int = 5) -> tuple[Tensor, Tensor]:
    """Indices (train, test) of a fixed split: every `fold`-th image is a test image."""
    index = torch.arange(1797)
    return index[index % fold != 0], index[index % fold == 0]
