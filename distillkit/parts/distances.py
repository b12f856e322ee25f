"""Distances of samples by name, for every method that compares two."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from torch import Tensor

from distillkit.contracts.codec import Pixels
from distillkit.contracts.teacher import Teacher
from distillkit.diffusion.distances import Distance, l1, l2, pseudo_huber
from distillkit.errors import UsageError
from distillkit.parts.perceptual import FROM, LPIPS

DistanceName = Literal["l1", "l2", "pseudo-huber", "lpips"]


class NamedDistance:
    """d(a, b) of samples (B, ...), one value per sample, (B,).

    Args:
        name: "l1", "l2", "pseudo-huber", or "lpips", whose network is loaded by `prepare` or at the first use.
    """

    def __init__(self, name: DistanceName) -> None:
        self.name = name

    @cached_property
    def _function(self) -> Distance:
        if self.name == "lpips":
            return LPIPS.pretrained()
        return {"l1": l1, "l2": l2, "pseudo-huber": pseudo_huber}[self.name]

    def prepare(self) -> None:
        """Load what the distance needs; for `Objective.prepare`.

        Raises:
            DistillkitError: when the weights of LPIPS cannot be had.
        """
        _ = self._function

    @property
    def remark(self) -> str:
        """For `Objective.remark`."""
        return "trained with LPIPS, whose features favour Inception's figures" if self.name == "lpips" else ""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return self._function(a, b)


def distance_for(teacher: Teacher, name: DistanceName | None = None) -> NamedDistance:
    """The distance of that name between the teacher's samples.

    By default LPIPS where the samples are images of at least 32 pixels, and pseudo-Huber elsewhere.

    Raises:
        UsageError: for LPIPS where samples are no pixels of images, such as latents.
    """
    pixels = isinstance(teacher.codec, Pixels) and teacher.codec.content == "images"
    if name is None:
        name = "lpips" if pixels and min(teacher.spec.shape[1:]) >= FROM else "pseudo-huber"
    if name == "lpips" and not pixels:
        raise UsageError(
            f"the distance lpips compares images, and samples of the teacher {teacher.spec.name} are "
            f"{'latents' if teacher.codec.content == 'images' else teacher.codec.content}: use l1, l2 or pseudo-huber"
        )
    return NamedDistance(name)
