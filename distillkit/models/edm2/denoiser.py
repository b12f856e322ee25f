"""EDM2's networks as denoisers: EDM's preconditioning, a learned uncertainty, and weights that are kept normalised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.diffusion.denoisers import EDMPreconditioning
from distillkit.diffusion.schedules import EDMSchedule
from distillkit.models.bounds import EDM2Sizes, check, check_sigma_data
from distillkit.models.edm2.layers import MPConv, MPFourier
from distillkit.models.edm2.unet import EDM2UNet


class LogVariance(nn.Module):
    """u(c_noise), (B,) -> (B,): one linear map of Fourier features of its own (Karras et al. 2024).

    In float32 whatever the precision around it: losses are divided by its exponential.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fourier = MPFourier(channels)
        self.linear = MPConv(channels, 1)

    def forward(self, level: Tensor) -> Tensor:
        with torch.autocast(level.device.type, enabled=False):
            return self.linear(self.fourier(level))[:, 0]


class EDM2Denoiser(EDMPreconditioning):
    """EDM's D(x; sigma, c) of a magnitude-preserving network, computed in float32 (or float64 inputs' dtype).

    Every training keeps the weights at unit magnitude (`after_update`), and that of a teacher learns u(sigma) beside
    it, by which its loss is weighted.

    Args:
        model, label_dim, sigma_data, schedule: as of `EDMPreconditioning`.
        logvar_channels: features of the noise level that u is made of; 0 for a network that has not learnt it, such as
            a one-step generator.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        label_dim: int = 0,
        sigma_data: float = 0.5,
        schedule: EDMSchedule | None = None,
        logvar_channels: int = 128,
    ) -> None:
        super().__init__(model, label_dim=label_dim, sigma_data=sigma_data, schedule=schedule)
        self.logvar = LogVariance(logvar_channels) if logvar_channels else None

    def log_variance(self, t: Tensor) -> Tensor | None:
        """u(sigma) (B,) of Eq. 21, at noise levels t (B,)."""
        if self.logvar is None:
            return None
        return self.logvar(t.to(torch.promote_types(t.dtype, torch.float32)).log() / 4)

    def units(self) -> Sequence[nn.Module]:
        """The blocks, and u, which is evaluated apart from the network."""
        return [*super().units(), *([self.logvar] if self.logvar is not None else ())]

    def after_update(self) -> None:
        """Forced weight normalisation of every layer (Eq. 66)."""
        for module in self.modules():
            if isinstance(module, MPConv):
                module.constrain()


def edm2(
    network: Mapping[str, Any],
    sigma_data: float = 0.5,
    schedule: Mapping[str, Any] | None = None,
    logvar_channels: int = 128,
) -> EDM2Denoiser:
    """The builder: arguments of `EDM2UNet`, the standard deviation of data, and the schedule {"kind": "edm", ...}.

    Raises:
        ValueError: for arguments beyond what any network needs.
    """
    check(EDM2Sizes, {**network, "logvar_channels": logvar_channels})
    check_sigma_data(sigma_data)
    return EDM2Denoiser(
        EDM2UNet(**network), label_dim=int(network.get("label_dim", 0)), sigma_data=sigma_data,
        schedule=EDMSchedule.model_validate(dict(schedule or {})), logvar_channels=logvar_channels,
    )  # fmt: skip
