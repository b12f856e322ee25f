"""The data sets in the package, by what a teacher makes."""

from __future__ import annotations

import torch

from distillkit.contracts.step import ImageSource
from distillkit.contracts.teacher import TeacherSpec
from distillkit.data.digits import load_digits
from distillkit.data.images import ImagesInMemory
from distillkit.data.mixture import MixturePoints
from distillkit.teachers.catalog import DIGITS, MIXTURE


def embedded_images(spec: TeacherSpec, device: torch.device) -> ImageSource | None:
    """The embedded digits for teachers of 8 x 8 digits, the mixture's points for teachers of points; else None."""
    if spec.shape == MIXTURE.spec.shape:
        return MixturePoints(device)
    if makes_digits(spec):
        return ImagesInMemory(*load_digits(), device)
    return None


def makes_digits(spec: TeacherSpec) -> bool:
    """Whether a teacher makes what the embedded digits are: 8 x 8 pixels in ten classes."""
    return spec.shape == DIGITS.spec.shape and spec.num_classes == DIGITS.spec.num_classes
