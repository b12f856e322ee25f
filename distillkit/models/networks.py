"""The networks that distillkit offers, by the names that descriptions use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from distillkit.contracts.denoiser import Denoiser
from distillkit.diffusion.denoisers import EDMPreconditioning
from distillkit.diffusion.schedules import EDMSchedule
from distillkit.models.adm.network import adm
from distillkit.models.bounds import PointMLPSizes, UNetSizes, check, check_sigma_data
from distillkit.models.diffusers.dit import dit
from distillkit.models.diffusers.flux import flux
from distillkit.models.diffusers.pixart import pixart
from distillkit.models.diffusers.sd3 import sd3
from distillkit.models.diffusers.unet2d import unet2d
from distillkit.models.diffusers.unet_condition import unet_condition
from distillkit.models.dit.network import dit as own_dit
from distillkit.models.dit.network import sit
from distillkit.models.edm.dhariwal_unet import DhariwalUNet
from distillkit.models.edm.song_unet import SongUNet
from distillkit.models.edm2.denoiser import edm2
from distillkit.models.point_mlp import PointMLP


def _edm(kind: type[Any], sizes: type[BaseModel]) -> Callable[..., Denoiser]:
    """The builder of an EDM-preconditioned network: its own arguments, the standard deviation of data, and the schedule
    {"kind": "edm", ...}."""

    def build(
        network: Mapping[str, Any], sigma_data: float = 0.5, schedule: Mapping[str, Any] | None = None
    ) -> Denoiser:
        check(sizes, network)
        check_sigma_data(sigma_data)
        label_dim = int(network.get("label_dim", 0))
        return EDMPreconditioning(
            kind(**network), label_dim=label_dim, sigma_data=sigma_data,
            schedule=EDMSchedule.model_validate(dict(schedule or {})),
        )  # fmt: skip

    return build


NETWORKS: Mapping[str, Callable[..., Denoiser]] = {
    "DhariwalUNet": _edm(DhariwalUNet, UNetSizes),
    "SongUNet": _edm(SongUNet, UNetSizes),
    "EDM2UNet": edm2,
    "PointMLP": _edm(PointMLP, PointMLPSizes),
    "ADM": adm,
    "DiT": own_dit,
    "SiT": sit,
    "UNet2DModel": unet2d,
    "UNet2DConditionModel": unet_condition,
    "DiTTransformer2DModel": dit,
    "PixArtTransformer2DModel": pixart,
    "SD3Transformer2DModel": sd3,
    "FluxTransformer2DModel": flux,
}
"""Name -> builder of plain keyword arguments."""
