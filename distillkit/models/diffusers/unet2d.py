"""diffusers' UNet2DModel as a denoiser: what it predicts, under which schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.diffusion.denoisers import EDMPreconditioning, Prediction, PredictionDenoiser
from distillkit.diffusion.schedules import EDMSchedule, FlowSchedule, schedule_of
from distillkit.models.bounds import UNet2DSizes, check, check_sigma_data

FLOW_TIMES = 1000.0
"""diffusers' networks take a flow's time in thousandths."""


class DiffusersUNet(nn.Module):
    """F(x, t, labels) of a UNet2DModel: (B, C, H, W), (B,), a condition, one-hot (B, K) or None -> (B, C, H, W).

    A network that also predicts a variance has twice the channels; the second half is left out.

    Args:
        arguments: of UNet2DModel.
        sign: -1 where the network predicts the negative of what its preconditioning expects.
        time_scale: what times are multiplied with for the network.
    """

    def __init__(self, arguments: Mapping[str, Any], *, sign: float = 1.0, time_scale: float = 1.0) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        unet: Any = UNet2DModel
        self.unet = unet(**arguments)
        self.channels = int(self.unet.config["in_channels"])
        self.sign, self.time_scale = sign, time_scale

    @property
    def bottleneck(self) -> nn.Module:
        """The block between the way down and the way up."""
        return self.unet.mid_block

    def forward(
        self, x: Tensor, t: Tensor, given: Condition | Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        labels = given.argmax(1) if isinstance(given, Tensor) else given.get("labels") if given else None
        out = self.unet(x, t * self.time_scale, class_labels=labels, return_dict=False)[0]
        return self.sign * out[:, : self.channels]


def unet2d(
    network: Mapping[str, Any], schedule: Mapping[str, Any], prediction: Prediction, sigma_data: float = 0.5
) -> Denoiser:
    """A denoiser of a UNet2DModel.

    Args:
        network: arguments of UNet2DModel.
        schedule: {"kind": "edm", "vp" or "flow", ...}; an edm schedule means EDM's preconditioning.
        prediction: what it predicts: epsilon or v_prediction; sample (vp), velocity (flow).
        sigma_data: standard deviation of the data.

    Raises:
        ValueError: for a prediction that the schedule does not have.
        TypeError: for arguments that UNet2DModel does not take.
    """
    check(UNet2DSizes, network)
    check_sigma_data(sigma_data)
    kept = schedule_of(schedule)
    known = {"edm": ("epsilon", "v_prediction"), "flow": ("velocity",)}
    if prediction not in (allowed := known.get(str(schedule["kind"]), ("epsilon", "v_prediction", "sample"))):
        raise ValueError(
            f"unknown prediction {prediction!r} of a {schedule['kind']} model; known: {', '.join(allowed)}"
        )
    if isinstance(kept, EDMSchedule):
        # EDM's c_out is negative for diffusers' v.
        model = DiffusersUNet(network, sign=-1.0 if prediction == "v_prediction" else 1.0)
        classes = int(network.get("num_class_embeds") or 0)
        return EDMPreconditioning(model, label_dim=classes, sigma_data=sigma_data, schedule=kept)
    model = DiffusersUNet(network, time_scale=FLOW_TIMES if isinstance(kept, FlowSchedule) else 1.0)
    return PredictionDenoiser(model, kept, prediction, sigma_data=sigma_data)
