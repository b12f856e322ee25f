"""Weights in the layouts of guided-diffusion, improved-diffusion, DiT and SiT: numbers that anybody can draw again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def weights(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, Tensor]:
    """Standard normal numbers, drawn in the order of the names and divided by the root of the inputs; biases a tenth of
    them, and weights of normalisations one more than that. numpy's old generator gives the same ones for ever."""
    random = np.random.RandomState(seed)
    made = {}
    for name in sorted(shapes):
        shape = shapes[name]
        drawn = random.standard_normal(tuple(shape))
        drawn = drawn / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1 * drawn + name.endswith("weight")
        made[name] = torch.from_numpy(drawn.astype(np.float32))
    return made
