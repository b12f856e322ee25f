"""diffusers' UNet2DModel: pixels, unconditional or of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.contracts.conditioner import ClassLabels, Conditioner, Unconditional
from distillkit.contracts.denoiser import Denoiser
from distillkit.diffusion.denoisers import EDMPreconditioning, Prediction, PredictionDenoiser
from distillkit.diffusion.schedules import EDMSchedule, schedule_of
from distillkit.errors import UsageError
from distillkit.models.bounds import UNet2DSizes, check, check_sigma_data
from distillkit.models.diffusers.attention import PROJECTIONS
from distillkit.models.diffusers.family import Described, Pipeline, class_names
from distillkit.models.diffusers.predictions import check_prediction, time_scale
from distillkit.reading import validated
from distillkit.text import short


class DiffusersUNet(nn.Module):
    """F(x, t, labels) of a UNet2DModel: (B, C, H, W), (B,), a condition, one-hot (B, K) or None -> (B, C, H, W).

    A network that also predicts a variance has twice the channels; the second half is left out.

    Args:
        arguments: of UNet2DModel.
        sign: -1 where the network predicts the negative of what its preconditioning expects.
        time_scale: what times are multiplied with for the network.
    """

    casts_inputs = True
    adapter_targets = PROJECTIONS

    def __init__(self, arguments: Mapping[str, Any], *, sign: float = 1.0, time_scale: float = 1.0) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        unet: Any = UNet2DModel
        self.unet = unet(**arguments)
        self.channels = int(self.unet.config["in_channels"])
        self.sign, self.time_scale = sign, time_scale

    @property
    def time_layers(self) -> Sequence[nn.Linear]:
        """The first layer of the embedded time."""
        return [self.unet.time_embedding.linear_1]

    @property
    def bottleneck(self) -> nn.Module:
        """The block between the way down and the way up."""
        return self.unet.mid_block

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of each resolution: the way down, the middle, the way up."""
        return [*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks]

    def forward(
        self, x: Tensor, t: Tensor, given: Condition | Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        labels = given.argmax(1) if isinstance(given, Tensor) else given.get("labels") if given else None
        out = self.unet(x.to(self.unet.dtype), t * self.time_scale, class_labels=labels, return_dict=False)[0]
        return self.sign * out[:, : self.channels].to(x.dtype)


def unet2d(
    network: Mapping[str, Any], schedule: Mapping[str, Any], prediction: Prediction, sigma_data: float = 0.5,
    scale: float = 1.0,
) -> Denoiser:  # fmt: skip
    """A denoiser of a UNet2DModel.

    Args:
        network: arguments of UNet2DModel.
        schedule: {"kind": "edm", "vp" or "flow", ...}; an edm schedule means EDM's preconditioning.
        prediction: what it predicts: epsilon or v_prediction; sample (vp), velocity (flow).
        sigma_data: standard deviation of the data.
        scale: what the network's time is multiplied with: consistency models of diffusers take EDM's ln(sigma) / 4 in
            thousandths.

    Raises:
        ValueError: for a scale that is none, or a prediction that the schedule does not have.
        TypeError: for arguments that UNet2DModel does not take.
    """
    check(UNet2DSizes, network)
    check_sigma_data(sigma_data)
    if not 1e-6 <= scale <= 1e6:
        raise ValueError(f"scale is {short(scale)}; it goes from 1e-6 to 1e6")
    kept = schedule_of(schedule)
    check_prediction(schedule, prediction)
    if isinstance(kept, EDMSchedule):
        # EDM's c_out is negative for diffusers' v.
        model = DiffusersUNet(network, sign=-1.0 if prediction == "v_prediction" else 1.0, time_scale=scale)
        classes = int(network.get("num_class_embeds") or 0)
        return EDMPreconditioning(model, label_dim=classes, sigma_data=sigma_data, schedule=kept)
    model = DiffusersUNet(network, time_scale=scale * time_scale(schedule))
    return PredictionDenoiser(model, kept, prediction, sigma_data=sigma_data)


def describe(pipeline: Pipeline) -> Described:
    """Pixels, unconditional or of classes.

    Raises:
        UsageError: for an option that is not followed.
    """
    return described_as(pipeline, **pipeline.conditioned())


def described_as(pipeline: Pipeline, **arguments: Any) -> Described:
    """The same under another noise than what `Pipeline.noise` reads.

    Args:
        arguments: of `unet2d` beside the network's; these too where they are other than the configuration's.

    Raises:
        UsageError: for an option that is not followed.
    """
    sizes = validated(UNet2DSizes, pipeline.config, str(pipeline.network / "config.json"))
    if pipeline.has("vae"):
        raise UsageError(
            f"{pipeline.folder} is a latent model (it has a VAE) of a UNet2DModel; those without one can be loaded"
        )
    pipeline.refuse({"class_embed_type": (None,)})
    if not sizes.sample_size:
        raise UsageError(f"{pipeline.folder}: its config.json does not say the sample_size")
    height, width = (sizes.sample_size,) * 2 if isinstance(sizes.sample_size, int) else sizes.sample_size
    return Described(
        shape=(sizes.in_channels, height, width),
        network={"kind": "distillkit:UNet2DModel", "arguments": {"network": pipeline.arguments, **arguments}},
        prefix="model.unet.",
        conditioner=_conditioner(pipeline),
        solver_steps=18 if max(height, width) <= 32 else 40,
    )


def _conditioner(pipeline: Pipeline) -> Conditioner:
    """Class labels where the network embeds some, with names where the pipeline has them; never a null label."""
    classes = pipeline.config.get("num_class_embeds") or 0
    if not classes:
        return Unconditional()
    return ClassLabels(classes=classes, null_label=False, class_names=class_names(pipeline, classes))
