"""diffusers' DiTTransformer2DModel: latents of classes (Peebles & Xie 2023, arXiv 2212.09748)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.contracts.conditioner import ClassLabels
from distillkit.contracts.denoiser import Denoiser
from distillkit.diffusion.denoisers import Prediction
from distillkit.models.bounds import TransformerSizes, check
from distillkit.models.diffusers.family import Described, Pipeline, class_names
from distillkit.models.diffusers.predictions import predicting, time_scale
from distillkit.models.diffusers.scheduler import Grid
from distillkit.models.diffusers.transformer import TransformerNetwork, check_channels, with_positions
from distillkit.reading import validated


class DiT(TransformerNetwork):
    """F(x, t, condition) of a DiTTransformer2DModel: (B, C, h, w), (B,), `labels` (B,) -> (B, C, h, w), in x's dtype.

    Label -1, or none at all, is the network's null label, the last of its table. The predicted variance is left out.

    Args:
        arguments: of DiTTransformer2DModel.
        time_scale: what times are multiplied with for the network.
    """

    def __init__(self, arguments: Mapping[str, Any], *, time_scale: float = 1.0) -> None:
        from diffusers import DiTTransformer2DModel

        kind: Any = DiTTransformer2DModel
        super().__init__(with_positions(kind(**arguments)), int(arguments.get("patch_size", 2)), time_scale)
        self.null = int(self.transformer.config["num_embeds_ada_norm"])

    @property
    def units(self) -> list[nn.Module]:
        """The blocks, and their embeddings of the time, as the transformer evaluates that of the first once more at its
        end."""
        blocks: list[Any] = self.blocks
        return [*blocks, *(block.norm1.emb for block in blocks)]

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        labels = condition.get("labels")
        labels = x.new_full((len(x),), self.null, dtype=torch.int64) if labels is None else labels
        return self.predicted(x, t, class_labels=labels.remainder(self.null + 1))


def dit(
    network: Mapping[str, Any], schedule: Mapping[str, Any], prediction: Prediction, sigma_data: float = 1.0
) -> Denoiser:
    """A denoiser of a DiTTransformer2DModel.

    Args:
        network: arguments of DiTTransformer2DModel.
        schedule: {"kind": "vp" or "flow", ...}.
        prediction: epsilon, v_prediction or sample (vp); velocity (flow).
        sigma_data: standard deviation of the latents.

    Raises:
        ValueError: for a schedule or prediction that it does not have.
        TypeError: for arguments that DiTTransformer2DModel does not take.
    """
    check(TransformerSizes, network)
    return predicting(DiT(network, time_scale=time_scale(schedule)), schedule, prediction, sigma_data)


def describe(pipeline: Pipeline) -> Described:
    """Latents of a VAE, conditions of classes with a null label.

    Raises:
        UsageError: for a part that is missing, or an option that is not followed.
    """
    sizes = validated(TransformerSizes, pipeline.config, str(pipeline.network / "config.json"))
    check_channels(sizes, pipeline)
    pipeline.require("vae")
    classes = sizes.num_embeds_ada_norm or 1000
    noise = pipeline.noise_on(Grid(own=True))
    return Described(
        shape=(sizes.in_channels, sizes.sample_size, sizes.sample_size),
        network=pipeline.of_latents("distillkit:DiTTransformer2DModel", noise),
        prefix="model.transformer.",
        conditioner=ClassLabels(classes=classes, null_label=True, class_names=class_names(pipeline, classes)),
        codec=pipeline.autoencoder(),
        solver="ddim",
        solver_steps=50,
    )
