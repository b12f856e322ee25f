"""diffusers' AutoencoderKL as a codec: latents on one side, images on the other."""

from __future__ import annotations

from typing import Annotated, Any, Self

import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from distillkit.contracts.codec import Codec, Content, Pixels
from distillkit.errors import UsageError
from distillkit.models.bounds import VAESizes
from distillkit.models.diffusers.attention import renamed_attention
from distillkit.models.diffusers.parts import PipelineParts
from distillkit.reading import validated
from distillkit.registry import blaming
from distillkit.text import short

AT_ONCE = 2**22
"""Pixels of one pass of the encoder or the decoder; more images go one after the other."""
ON_A_CPU = 2**15
"""The same there, where larger passes leave the caches and take up to twice as long for an image."""
WITH_GRADIENT = 2**18
"""Pixels of one pass of the decoder on the way back of a gradient, which takes some gigabytes for 512 x 512 of them."""


Channels = tuple[Annotated[float, Field(ge=-1e6, le=1e6)], ...]
"""A number for each channel of latents."""
Deviations = tuple[Annotated[float, Field(gt=0, le=1e6)], ...]


class AutoencoderKL(Codec):
    """Latents (B, C, h, w) = (z - shift) * scaling, z the mean of a variational autoencoder's code of an image; of
    each channel (z - means) / stds * scaling, where these are given.

    Computed in float32, as `force_upcast` of SDXL's asks for. Encoding takes the mean and draws nothing.

    Args:
        parts: of the pipeline that holds the `vae`.
        factor: pixels of an image's side for one of a latent's.
        channels, latent_channels: of an image, and of a latent.
        scaling, shift: of latents (`scaling_factor`, `shift_factor`).
        means, stds: of latents' channels (`latents_mean`, `latents_std`); as many as channels, or none.
    """

    parts: PipelineParts
    factor: int = Field(8, ge=1, le=256)
    channels: int = Field(3, ge=1, le=16)
    latent_channels: int = Field(4, ge=1, le=4096)
    scaling: float = Field(0.18215, gt=0, le=1e6)
    shift: float = Field(0.0, ge=-1e6, le=1e6)
    means: Channels = ()
    stds: Deviations = ()

    _model: Any = PrivateAttr(None)
    _device: torch.device = PrivateAttr(default_factory=lambda: torch.device("cpu"))

    @model_validator(mode="after")
    def _every_channel(self) -> Self:
        if len(self.means) != len(self.stds) or len(self.means) not in (0, self.latent_channels):
            raise ValueError(
                f"{len(self.means)} means and {len(self.stds)} standard deviations are given for "
                f"{self.latent_channels} channels of latents"
            )
        return self

    @property
    def content(self) -> Content:
        return "images"

    @torch.no_grad()
    def decode(self, samples: Tensor) -> Tensor:
        return torch.cat([self._pixels.decode(self._decoded(part)) for part in self._in_turn(samples, self.factor**2)])

    def images(self, samples: Tensor) -> Tensor:
        """With gradients, which pass through the decoder; its activations are computed anew on the way back, for a few
        images at a time."""
        if not torch.is_grad_enabled() or not samples.requires_grad:
            made = torch.cat([self._decoded(part) for part in self._in_turn(samples, self.factor**2)])
        else:
            parts = self._in_turn(samples, self.factor**2, WITH_GRADIENT)
            made = torch.cat([checkpoint(self._decoded, part, use_reentrant=False) for part in parts])
        return self._pixels.images(made)

    def encode(self, data: Tensor) -> Tensor:
        return self.distribution(data)[0]

    @torch.no_grad()
    def distribution(self, data: Tensor) -> tuple[Tensor, Tensor | None]:
        model = self._loaded()
        codes = [
            model.encode(self._pixels.encode(part)).latent_dist for part in self._in_turn(data.to(self._device), 1)
        ]
        mean, deviation = torch.cat([code.mean for code in codes]), torch.cat([code.std for code in codes])
        return self.scaled(mean, deviation)

    def scaled(self, mean: Tensor, deviation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        shift, spread = self._spread(mean)
        return (mean - shift) / spread, None if deviation is None else deviation / spread

    def decoded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.channels, self.factor * shape[1], self.factor * shape[2]

    def encoded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.latent_channels, shape[1] // self.factor, shape[2] // self.factor

    def to(self, device: torch.device | str) -> Self:
        self._device = torch.device(device)
        if self._model is not None:
            self._model.to(device)
        return self

    def release(self) -> None:
        self._model = None

    @property
    def weight_bytes(self) -> int:
        return 0 if self._model is None else sum(p.numel() * p.element_size() for p in self._model.parameters())

    def hashed(self) -> Self:
        return self.model_copy(update={"parts": self.parts.hashed("vae")})

    @property
    def _pixels(self) -> Codec:
        """Between the numbers that the autoencoder sees and gives, and images."""
        return Pixels()

    def _decoded(self, samples: Tensor) -> Tensor:
        model = self._loaded()
        with torch.autocast(samples.device.type, enabled=False):
            latents = samples.float().to(self._device)
            shift, spread = self._spread(latents)
            return model.decode(latents * spread + shift, return_dict=False)[0]

    def _spread(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """z = latents * spread + shift; both (1, C or 1, 1, 1)."""
        shift = like.new_tensor(self.means or (self.shift,)).view(1, -1, 1, 1)
        return shift, like.new_tensor(self.stds or (1.0,)).view(1, -1, 1, 1) / self.scaling

    def _in_turn(self, samples: Tensor, pixels: int, at_once: int = AT_ONCE) -> tuple[Tensor, ...]:
        """Parts of a batch that take one pass each; `pixels` of an image for one place of a sample."""
        each = max(1, samples.shape[-1] * samples.shape[-2] * pixels)
        if self._device.type == "cpu":
            at_once = min(at_once, ON_A_CPU)
        return samples.split(max(1, at_once // each))

    def _loaded(self) -> Any:
        if self._model is None:
            from distillkit.models.store.folder import check_fit

            with torch.device("meta"):
                model = build_autoencoder(self.parts)
            expected = model.state_dict()
            state = renamed_attention(self.parts.weights("vae"), expected)
            check_fit(expected, state, str(self.parts.component("vae")))
            model.load_state_dict(state, assign=True)
            self._model = model.to(self._device).eval().requires_grad_(False)
        return self._model


def autoencoder_of(parts: PipelineParts, *, shifted: bool = False, spread: bool = False) -> AutoencoderKL:
    """The codec of a pipeline's AutoencoderKL, by its configuration.

    Args:
        shifted: what is used of it adds its `shift_factor`.
        spread: it uses `latents_mean` and `latents_std`.

    Raises:
        UsageError: for an autoencoder of another class, or none.
        DistillkitError: for a configuration that is damaged.
    """
    config = parts.configuration("vae")
    if (kind := config.get("_class_name")) != "AutoencoderKL":
        raise UsageError(f"{parts.folder}: its vae is a {short(kind)}; known: AutoencoderKL")
    sizes = validated(VAESizes, config, str(parts.component("vae") / "config.json"))
    has_spread = spread and sizes.latents_mean and sizes.latents_std
    return AutoencoderKL(
        parts=parts,
        factor=2 ** (len(sizes.block_out_channels) - 1),
        channels=sizes.in_channels,
        latent_channels=sizes.latent_channels,
        scaling=0.18215 if sizes.scaling_factor is None else sizes.scaling_factor,
        shift=(sizes.shift_factor or 0.0) if shifted else 0.0,
        means=sizes.latents_mean or () if has_spread else (),
        stds=sizes.latents_std or () if has_spread else (),
    )


def build_autoencoder(parts: PipelineParts) -> Any:
    """diffusers' AutoencoderKL that a pipeline's `vae/config.json` describes, with random weights.

    Raises:
        UsageError: when the pipeline has none.
        DistillkitError: when it is damaged, or no such network can be made.
    """
    from diffusers import AutoencoderKL as Autoencoder

    config = {k: v for k, v in parts.configuration("vae").items() if not k.startswith("_")}
    place = str(parts.component("vae"))
    validated(VAESizes, config, f"{place}/config.json")
    kind: Any = Autoencoder
    with blaming("the AutoencoderKL", place, "cannot be made from its config.json"):
        return kind(**config)
