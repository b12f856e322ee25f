"""EDM2's networks by their sizes (Karras et al. 2024, arXiv 2312.02696 and 2406.02507)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distillkit.diffusion.schedules import EDMSchedule
from distillkit.models.edm.families import described

STEPS = 32
"""Of Heun's method, in the paper's samples."""
NFE = 2 * STEPS - 1
WIDTHS: Mapping[str, int] = {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
"""Size -> channels of the first level."""
DROPOUTS: Mapping[str, float] = {"m": 0.1, "l": 0.1, "xl": 0.1, "xxl": 0.1}
"""Size -> dropout of its training; none for the others."""
NETWORK: Mapping[str, Any] = {"channel_mult": [1, 2, 3, 4], "num_blocks": 3, "attn_resolutions": [16, 8]}
"""What all sizes have."""


def describe_network(
    resolution: int,
    channels: int,
    label_dim: int,
    network: Mapping[str, Any],
    *,
    sigma_data: float = 0.5,
    logvar_channels: int = 128,
    schedule: EDMSchedule | None = None,
) -> dict[str, Any]:
    """A network's description, as `build_denoiser` takes it.

    Args:
        network: arguments of its constructor; they win over those that all sizes have.
        logvar_channels: features of the noise level that its uncertainty is made of; 0 for none.
        schedule: smallest and largest noise level and the grid; the paper's by default.
    """
    shape = {"img_resolution": resolution, "in_channels": channels, "out_channels": channels, "label_dim": label_dim}
    found = described("EDM2UNet", {**shape, **NETWORK, **network}, sigma_data, schedule or EDMSchedule())
    return {**found, "arguments": {**found["arguments"], "logvar_channels": logvar_channels}}
