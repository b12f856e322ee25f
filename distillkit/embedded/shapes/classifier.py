"""The small classifier that reads a picture's attributes, and how far they are as a sentence says.

Its last features also measure Fréchet distances. It was made by `python -m tools.shapes.train_classifier`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from distillkit.embedded.shapes.world import ATTRIBUTES, KINDS, Scene, codes

WEIGHTS = "shapescnn.safetensors"
VALUES = tuple(KINDS[name.split()[-1]] for name in ATTRIBUTES)
"""How many values each attribute has, in the order of ATTRIBUTES."""


class ShapesCNN(nn.Module):
    """Five convolutions and a 128-unit layer: pictures (B, 3, 32, 32) in [-1, 1] -> logits (B, 29) of nine attributes.

    Evaluate it in eval mode: batch normalisation then uses its stored moments, and a picture's features do not depend
    on the rest of the batch. 293,693 parameters.
    """

    dim = 128

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(3, 32),
            convolution(32, 48), nn.MaxPool2d(2),
            convolution(48, 64), nn.MaxPool2d(2),
            convolution(64, 64), convolution(64, 80), nn.MaxPool2d(2),
        )  # fmt: skip
        self.fc = nn.Linear(80 * 4 * 4, self.dim, bias=False)
        self.norm = nn.BatchNorm1d(self.dim)
        self.head = nn.Linear(self.dim, sum(VALUES))

    def features(self, x: Tensor) -> Tensor:
        """(B, 128) non-negative activations of the last hidden layer."""
        return F.relu(self.norm(self.fc(self.body(x).flatten(1))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution, batch normalisation and ReLU: (B, inputs, H, W) -> (B, outputs, H, W)."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


@cache
def shapes_cnn() -> tuple[ShapesCNN, float]:
    """The shipped classifier, frozen and in float32, and its features' total standard deviation over real pictures.

    The file holds its larger weights in float16.
    """
    from distillkit.embedded.assets import asset_path  # here, so that tools need torch and safetensors alone

    tensors = load_file(asset_path(WEIGHTS))
    scale, network = float(tensors.pop("scale")), ShapesCNN()
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False), scale


def readings(logits: Tensor) -> Tensor:
    """What the classifier sees, as `world.codes` says it: logits (B, 29) -> (B, 9), -1 where there is one thing."""
    seen = torch.stack([part.argmax(1) for part in logits.split(VALUES, dim=1)], 1)
    seen[:, 4:8] = torch.where(seen[:, :1] == 1, seen[:, 4:8], -1)
    return seen


def agreement(logits: Tensor, scenes: Sequence[Scene]) -> Mapping[str, Tensor]:
    """The share of a scene's attributes that its picture has, each (B,) float64: together, and by kind.

    A scene of two things has nine attributes and one of one thing has five: "all" is the share of these, "whole" is 1
    where it is 1. A second thing that is not there has none of its attributes. "size", "colour" and "shape" are means
    over the scene's things; "relation" is NaN where the scene has one thing.

    Args:
        logits: (B, 29) of pictures made for `scenes`.

    Raises:
        ValueError: for other numbers of pictures and scenes.
    """
    if len(logits) != len(scenes):
        raise ValueError(f"{len(logits)} pictures cannot be compared with {len(scenes)} sentences")
    asked = codes(scenes).to(logits.device)
    applies = asked >= 0
    right = (readings(logits) == asked) & applies
    kinds = [name.split()[-1] for name in ATTRIBUTES]
    shares = {"all": right.double().sum(1) / applies.sum(1), "whole": (right == applies).all(1).double()}
    for kind in KINDS:
        of = [i for i, name in enumerate(kinds) if name == kind]
        shares[kind] = right[:, of].double().sum(1) / applies[:, of].sum(1)  # 0 / 0 is NaN
    return shares
