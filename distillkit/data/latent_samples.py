"""Samples of what an autoencoder makes of images: its distribution, and draws from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distillkit.contracts.codec import Codec
from distillkit.contracts.random import Indices, SampleRNG
from distillkit.errors import DistillkitError


@torch.no_grad()
def encoded(
    codec: Codec, pixels: Tensor, dtype: torch.dtype, where: Callable[[int], str]
) -> tuple[Tensor, Tensor | None]:
    """Mean and deviation (B, ...) of the samples of images (B, C, H, W) uint8, rounded to `dtype`.

    Args:
        where: the image at a place of the batch comes from, for messages.

    Raises:
        DistillkitError: naming the first image whose sample is not finite.
    """
    mean, deviation = (None if part is None else part.contiguous().to(dtype) for part in codec.distribution(pixels))
    assert mean is not None
    finite = mean.flatten(1).isfinite().all(1)
    if deviation is not None:
        finite &= deviation.flatten(1).isfinite().all(1)
    if not finite.all():
        place = int(finite.logical_not().nonzero()[0])
        raise DistillkitError(
            f"the latent of {where(place)} is not finite: the autoencoder overflows, or its weights are damaged"
        )
    return mean, deviation


def latents_of(mean: Tensor, deviation: Tensor | None, rng: SampleRNG, step: int, indices: Indices) -> Tensor:
    """Samples (B, ...) float32 drawn from the autoencoder's distribution, as latent models see them in their training:
    the decoder ignores this noise, a discriminator would not."""
    if deviation is None:
        return mean.float()
    noise = rng.normal("images/latent", step, indices, mean.shape[1:]).to(mean.device)
    return mean.float() + deviation.float() * noise
