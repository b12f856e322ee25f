"""From a network's description, which is plain data, to a denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from distillkit.contracts.denoiser import Denoiser
from distillkit.diffusion.preconditioning import EDMPreconditioning
from distillkit.errors import DistillkitError
from distillkit.networks.dhariwal_unet import DhariwalUNet
from distillkit.networks.diffusers_unet import build_diffusers_denoiser
from distillkit.networks.point_mlp import PointMLP
from distillkit.networks.song_unet import SongUNet

NETWORKS: Mapping[str, type[nn.Module]] = {"DhariwalUNet": DhariwalUNet, "SongUNet": SongUNet, "PointMLP": PointMLP}


def build_denoiser(description: Mapping[str, Any]) -> Denoiser:
    """A denoiser with fresh weights.

    Args:
        description: {"class": name, "arguments": {...}, "sigma_data": float} for EDM's networks, the arguments being
            those of the network's constructor; for UNet2DModel see `build_diffusers_denoiser`.

    Raises:
        DistillkitError: for an unknown class or arguments that do not fit it.
    """
    name, arguments = str(description.get("class")), dict(description.get("arguments", {}))
    if name == "UNet2DModel":
        return build_diffusers_denoiser(description)
    if name not in NETWORKS:
        raise DistillkitError(f"unknown network class {name!r}; known: {', '.join((*NETWORKS, 'UNet2DModel'))}")
    try:
        network = NETWORKS[name](**arguments)
    except (TypeError, ValueError) as error:
        raise DistillkitError(f"the arguments of {name} do not fit: {error}") from error
    return EDMPreconditioning(
        network, label_dim=arguments.get("label_dim", 0), sigma_data=description.get("sigma_data", 0.5)
    )
