"""ADM's U-Net under its own schedule of betas: DhariwalUNet, asked as guided-diffusion asks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distillkit.contracts.condition import Condition
from distillkit.contracts.denoiser import Denoiser
from distillkit.diffusion.denoisers import Prediction, PredictionDenoiser, one_hot
from distillkit.diffusion.schedules import schedule_of
from distillkit.models.bounds import UNetSizes, check, check_sigma_data
from distillkit.models.diffusers.predictions import check_prediction
from distillkit.models.edm.dhariwal_unet import DhariwalUNet


class ADM(DhariwalUNet):
    """F(x, t, condition): (B, C, H, W), training steps (B,), `labels` (B,) or nothing -> (B, C, H, W).

    Args:
        time_scale: what steps are multiplied with for the network.
        arguments: of DhariwalUNet.
    """

    def __init__(self, *, time_scale: float = 1.0, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.time_scale, self.label_dim = time_scale, int(arguments.get("label_dim", 0))

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:  # type: ignore[override]
        return super().forward(x, t * self.time_scale, one_hot(condition, self.label_dim, x)).to(x.dtype)


def adm(
    network: Mapping[str, Any], schedule: Mapping[str, Any], prediction: Prediction, sigma_data: float = 0.5,
    time_scale: float = 1.0,
) -> Denoiser:  # fmt: skip
    """A denoiser of ADM's U-Net.

    Args:
        network: arguments of DhariwalUNet.
        schedule: {"kind": "vp", ...}.
        prediction: epsilon, v_prediction or sample.
        sigma_data: standard deviation of the data.
        time_scale: what training steps are multiplied with for the network (`rescale_timesteps`).

    Raises:
        ValueError: for a schedule or prediction that it does not have.
        TypeError: for arguments that DhariwalUNet does not take.
    """
    check(UNetSizes, network)
    check_sigma_data(sigma_data)
    if schedule.get("kind") != "vp":
        raise ValueError(f"ADM's networks have a schedule of kind vp, not {schedule.get('kind')}")
    check_prediction(schedule, prediction)
    if not 0 < time_scale <= 1e6:
        raise ValueError(f"time_scale: it is {time_scale}, and a number from 0 to 1e+06 is due")
    return PredictionDenoiser(
        ADM(time_scale=time_scale, **network), schedule_of(schedule), prediction, sigma_data=sigma_data
    )
