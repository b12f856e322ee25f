"""The networks that distillkit offers, by the names that descriptions use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from distillkit.contracts.denoiser import Denoiser
from distillkit.diffusion.denoisers import EDMPreconditioning
from distillkit.diffusion.schedules import EDMSchedule
from distillkit.models.diffusers.unet2d import unet2d
from distillkit.models.edm.dhariwal_unet import DhariwalUNet
from distillkit.models.edm.song_unet import SongUNet
from distillkit.models.point_mlp import PointMLP


def _edm(kind: type[Any]) -> Callable[..., Denoiser]:
    """The builder of an EDM-preconditioned network: its own arguments, the standard deviation of data, and the schedule
    {"kind": "edm", ...}."""

    def build(
        network: Mapping[str, Any], sigma_data: float = 0.5, schedule: Mapping[str, Any] | None = None
    ) -> Denoiser:
        label_dim = int(network.get("label_dim", 0))
        return EDMPreconditioning(
            kind(**network), label_dim=label_dim, sigma_data=sigma_data,
            schedule=EDMSchedule.model_validate(dict(schedule or {})),
        )  # fmt: skip

    return build


NETWORKS: Mapping[str, Callable[..., Denoiser]] = {
    "DhariwalUNet": _edm(DhariwalUNet), "SongUNet": _edm(SongUNet), "PointMLP": _edm(PointMLP), "UNet2DModel": unet2d,
}  # fmt: skip
"""Name -> builder of plain keyword arguments."""
