"""Training an autoencoder of latents: reconstruction, and a small divergence of its codes from the normal distribution.

Kingma & Welling 2014 (arXiv 1312.6114), with the weights and the scale of latents of Rombach et al. 2022 (arXiv
2112.10752). Their perceptual and adversarial losses are not here; the differences of neighbouring pixels are compared
instead, so that edges are sharp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from distillkit.contracts.codec import Pixels
from distillkit.contracts.learner import Learner
from distillkit.contracts.source import Images
from distillkit.contracts.step import Draws
from distillkit.engine.config import TrainingConfig
from distillkit.errors import UsageError
from distillkit.jobs.part import Part, in_passes
from distillkit.models.diffusers.parts import PipelineParts
from distillkit.models.diffusers.vae import build_autoencoder
from distillkit.models.diffusers.write import Replaced

AUTOENCODER_TRAINING: Mapping[str, Any] = {
    "duration": "10M",
    "batch": 12,
    "lr": 5.4e-5,
    "optimizer": "adam",
    "beta1": 0.5,
    "beta2": 0.9,
    "weight_decay": 0.0,
    "ema_halflife": "100k",
}
"""Optimiser and rate (4.5e-6 times the batch) of latent-diffusion's configurations of KL autoencoders; the duration and
the average are a beginning."""
SHOWN = 10
"""Pictures of a preview."""
ERROR, PSNR = "reconstruction error", "PSNR"


class AutoencoderConfig(BaseModel):
    """The loss of an autoencoder."""

    model_config = ConfigDict(extra="forbid")

    reconstruction: Literal["l1", "l2"] = Field("l1", description="distance of a picture and its reconstruction")
    edges_weight: float = Field(0.5, ge=0, description="weight of that distance between differences of neighbours")
    kl_weight: float = Field(
        1e-6, ge=0, description="weight of the divergence of codes from N(0, I), both terms being of a pixel's value"
    )


class Autoencoder(Learner):
    """|D(z) - x| + w |d(D(z) - x)| + beta KL(q(z | x) || N(0, I)), z = mu + s n drawn from q(z | x) = N(mu, s^2).

    The first term is a mean over pixels' values (Kingma & Welling 2014, Eq. 10, with a Laplace or a normal likelihood);
    d are differences of neighbours along both sides. The divergence (appendix B) is a sum over the code, divided by the
    number of the picture's values, so that beta is Rombach et al.'s weight of 1e-6.

    Args:
        model: of diffusers, AutoencoderKL.
    """

    name = "autoencoder"
    needs = (Images,)
    model: Any

    def __init__(self, model: torch.nn.Module, config: AutoencoderConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def loss(self, step: Draws) -> Tensor:
        x = step.images.sample
        mean, logvar = self.code(x)
        noise = step.normal_of("code", mean.shape[1:])
        difference = self.model.decode(mean + (0.5 * logvar).exp() * noise).sample.float() - x
        across, down = difference.diff(dim=3), difference.diff(dim=2)
        reconstruction, edges = self._distance(difference), self._distance(across) + self._distance(down)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum() / x.numel()
        step.log("reconstruction", reconstruction)
        step.log("edges", edges)
        step.log("kl", kl)
        return reconstruction + self.config.edges_weight * edges + self.config.kl_weight * kl

    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of q(z | x), (B, c, h, w) float32 both; x (B, C, H, W) in [-1, 1]."""
        found = self.model.encode(x).latent_dist
        return found.mean.float(), found.logvar.float()

    def _distance(self, difference: Tensor) -> Tensor:
        return difference.abs().mean() if self.config.reconstruction == "l1" else difference.square().mean()

    @torch.no_grad()
    def reconstructed(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) uint8 through the mean of their codes, as codecs decode them."""
        return Pixels().decode(self.model.decode(self.code(x)[0]).sample)


class AutoencoderPart(Part):
    """A pipeline's AutoencoderKL.

    Raises:
        UsageError, DistillkitError: when the pipeline describes none.
    """

    name = "autoencoder"
    component = "vae"

    def __init__(self, parts: PipelineParts, config: AutoencoderConfig, seed: int) -> None:
        super().__init__(parts)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.learner = Autoencoder(build_autoencoder(parts), config)

    def check(self, training: TrainingConfig, shape: tuple[int, ...], processes: int) -> None:
        config = self.parts.configuration("vae")
        factor, channels = 2 ** (len(config["block_out_channels"]) - 1), config.get("in_channels", 3)
        if shape[0] != channels or shape[1] % factor or shape[2] % factor:
            raise UsageError(
                f"the images are {shape} (channels, height, width), and the autoencoder of {self.parts.source} takes "
                f"{channels} channels and sides that are multiples of {factor}: give --data-resolution"
            )
        if training.compile != "off":
            raise UsageError("--compile is for networks alone: leave it out with --part autoencoder")

    def figures(self, learner: Learner, held: Images) -> dict[str, float]:
        """Root of the mean squared error of values 0 to 255, and 20 log10(255 / error), over all pictures at once."""
        assert isinstance(learner, Autoencoder)
        device, total = next(learner.parameters()).device, 0.0
        for x in in_passes(held.sample):
            difference = learner.reconstructed(x.to(device)).float() - Pixels().decode(x).to(device)
            total += difference.square().sum(dtype=torch.float64).item()
        error = math.sqrt(total / held.sample.numel())
        return {ERROR: error, PSNR: 20 * math.log10(255 / max(error, 1e-9))}

    def rows(self, learner: Learner, held: Images) -> Mapping[str, Tensor]:
        assert isinstance(learner, Autoencoder)
        x, device = held.sample[:SHOWN], next(learner.parameters()).device
        return {"pictures": Pixels().decode(x), "through the autoencoder": learner.reconstructed(x.to(device)).cpu()}

    def replaced(self, learner: Learner, held: Images) -> Replaced:
        """With the scale that gives latents a standard deviation of 1 (Rombach et al. 2022, appendix G), over all
        channels; a shift where the configuration has one, so that they have a mean of 0; none of each channel."""
        assert isinstance(learner, Autoencoder)
        mean, std = spread(learner, held.sample)
        changes: dict[str, Any] = {"scaling_factor": round(1 / std, 5), "latents_mean": None, "latents_std": None}
        if self.parts.configuration("vae").get("shift_factor") is not None:
            changes["shift_factor"] = round(mean, 5)
        return Replaced(learner.model.state_dict(), changes)


@torch.no_grad()
def spread(learner: Autoencoder, samples: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of the codes that are drawn for pictures (N, C, H, W) in [-1, 1]: Var z = Var mu +
    E s^2."""
    device, variance, count = next(learner.parameters()).device, 0.0, 0
    codes: list[Tensor] = []
    for x in in_passes(samples):
        mean, logvar = learner.code(x.to(device))
        codes.append(mean.flatten().cpu())
        variance, count = variance + logvar.exp().sum(dtype=torch.float64).item(), count + logvar.numel()
    means = torch.cat(codes).double()
    return means.mean().item(), math.sqrt(means.var(unbiased=False).item() + variance / count)
