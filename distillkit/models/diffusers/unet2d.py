"""diffusers' UNet2DModel as a denoiser: its scheduler's configuration says what it predicts at which noise levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.contracts.denoiser import Denoiser
from distillkit.diffusion.preconditioning import EDMPreconditioning
from distillkit.diffusion.variance_preserving import VariancePreserving, vp_sigmas
from distillkit.errors import DistillkitError

PREDICTIONS = ("epsilon", "v_prediction", "sample")
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


class DiffusersUNet(nn.Module):
    """F(x, t, labels) of a UNet2DModel: (B, C, H, W), (B,), (B,) or one-hot (B, K) or None -> (B, C, H, W).

    A network that also predicts a variance has twice the channels; the second half is left out.
    `sign` is -1 where the network predicts the negative of what its preconditioning expects.
    """

    def __init__(self, arguments: Mapping[str, Any], sign: float = 1.0) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        unet: Any = UNet2DModel
        self.unet = unet(**arguments)
        self.channels, self.sign = int(self.unet.config["in_channels"]), sign

    @property
    def bottleneck(self) -> nn.Module:
        """The block between the way down and the way up."""
        return self.unet.mid_block

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        if labels is not None and labels.dim() == 2:
            labels = labels.argmax(1)
        out = self.unet(x, t, class_labels=labels, return_dict=False)[0]
        return self.sign * out[:, : self.channels]


def build_diffusers_denoiser(description: Mapping[str, Any]) -> Denoiser:
    """A denoiser of {"class": "UNet2DModel", "arguments": {...}, "noise": {...}}.

    `noise` is {"convention": "vp", "prediction", "steps", "schedule", "beta_start", "beta_end", "zero_terminal_snr"}
    or {"convention": "edm", "prediction", "sigma_data"}.

    Raises:
        DistillkitError: for arguments that UNet2DModel does not take or an unknown prediction or schedule.
    """
    noise = dict(description.get("noise", {}))
    prediction = noise.get("prediction")
    if prediction not in PREDICTIONS:
        raise DistillkitError(f"unknown prediction {prediction!r}; known: {', '.join(PREDICTIONS)}")
    edm = noise.get("convention") == "edm"
    try:
        network = DiffusersUNet(description["arguments"], -1.0 if edm and prediction == "v_prediction" else 1.0)
    except (TypeError, ValueError, KeyError) as error:
        raise DistillkitError(f"the arguments of UNet2DModel do not fit: {error}") from error
    if edm:
        if prediction == "sample":
            raise DistillkitError(
                "an EDM scheduler with prediction 'sample' is not defined; known: epsilon, v_prediction"
            )
        classes = description["arguments"].get("num_class_embeds") or 0
        return EDMPreconditioning(network, label_dim=classes, sigma_data=float(noise.get("sigma_data", 0.5)))
    return VariancePreserving(network, sigmas_of(noise), prediction)


def sigmas_of(noise: Mapping[str, Any]) -> Tensor:
    """The noise levels of a variance-preserving description, (T,) float64.

    Raises:
        DistillkitError: for an unknown schedule.
    """
    if noise.get("schedule") not in SCHEDULES:
        raise DistillkitError(f"unknown schedule of betas {noise.get('schedule')!r}; known: {', '.join(SCHEDULES)}")
    with torch.device("cpu"):
        return vp_sigmas(
            int(noise["steps"]),
            noise["schedule"],
            beta_start=float(noise["beta_start"]),
            beta_end=float(noise["beta_end"]),
            zero_terminal_snr=bool(noise.get("zero_terminal_snr", False)),
        )
