"""Distances of samples by name, for every method that compares two."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Literal

from torch import Tensor

from distillkit.contracts.codec import Codec, Pixels
from distillkit.contracts.teacher import Teacher
from distillkit.diffusion.distances import Distance, huber, l1, l2, pseudo_huber
from distillkit.errors import UsageError
from distillkit.parts.perceptual import FROM, LPIPS

DistanceName = Literal["l1", "l2", "huber", "pseudo-huber", "lpips"]


class NamedDistance:
    """d(a, b) of samples (B, ...), one value per sample, (B,).

    Args:
        name: "l1", "l2", "huber", "pseudo-huber", or "lpips", whose network is loaded by `prepare` or at the first use.
        decode: samples -> the images that are compared instead of them, with gradients.
    """

    def __init__(self, name: DistanceName, decode: Callable[[Tensor], Tensor] | None = None) -> None:
        self.name, self.decode = name, decode

    @cached_property
    def _function(self) -> Distance:
        if self.name == "lpips":
            return LPIPS.pretrained()
        return {"l1": l1, "l2": l2, "huber": huber, "pseudo-huber": pseudo_huber}[self.name]

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

    @property
    def detail(self) -> str:
        """For `Objective.detail`."""
        return f"{self.name} of decoded images: the decoder in every step" if self.decode else self.name

    @property
    def frozen_bytes(self) -> int:
        """For `Objective.frozen_bytes`."""
        network = self.__dict__.get("_function")
        return sum(p.numel() * p.element_size() for p in network.parameters()) if isinstance(network, LPIPS) else 0

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        if self.decode is not None:
            a, b = self.decode(a), self.decode(b)
        return self._function(a, b)


def distance_for(teacher: Teacher, name: DistanceName | None = None) -> NamedDistance:
    """The distance of that name between the teacher's samples; LPIPS is that of the images which a codec decodes.

    By default LPIPS where samples are images of at least 32 pixels or are decoded to such, and pseudo-Huber elsewhere.

    Raises:
        UsageError: for LPIPS where there are no images, or none with gradients.
    """
    codec = teacher.codec
    pixels, decodes = isinstance(codec, Pixels), type(codec).images is not Codec.images
    images = codec.content == "images" and (pixels or decodes)
    if name is None:
        sides = codec.decoded_shape(teacher.spec.shape)[1:] if images else ()
        name = "lpips" if images and min(sides) >= FROM else "pseudo-huber"
    if name == "lpips" and not images:
        raise UsageError(
            f"the distance lpips compares images, and samples of the teacher {teacher.spec.name} are "
            f"{'latents' if codec.content == 'images' else codec.content}"
            f"{' whose codec passes no gradients' if codec.content == 'images' else ''}: use l1, l2 or pseudo-huber"
        )
    return NamedDistance(name, codec.images if name == "lpips" and decodes else None)
