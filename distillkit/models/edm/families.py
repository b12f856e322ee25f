"""The network families of EDM's paper by name: what `--arch` means (Karras et al. 2022, appendix F.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from distillkit.diffusion.schedules import EDMSchedule

Family = Literal["ddpmpp", "ncsnpp", "adm"]

_SONG = {"model_channels": 128, "num_blocks": 4, "attn_resolutions": [16], "decoder_type": "standard"}

FAMILIES: Mapping[Family, tuple[str, Mapping[str, Any]]] = {
    "ddpmpp": (
        "SongUNet",
        {
            **_SONG,
            "embedding_type": "positional",
            "encoder_type": "standard",
            "channel_mult_noise": 1,
            "resample_filter": [1, 1],
        },
    ),
    "ncsnpp": (
        "SongUNet",
        {
            **_SONG,
            "embedding_type": "fourier",
            "encoder_type": "residual",
            "channel_mult_noise": 2,
            "resample_filter": [1, 3, 3, 1],
        },
    ),
    "adm": (
        "DhariwalUNet",
        {"model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3, "attn_resolutions": [32, 16, 8]},
    ),
}
"""Name -> (network class, its arguments that differ between the families)."""


def describe_network(
    family: Family,
    resolution: int,
    channels: int,
    label_dim: int,
    *,
    sigma_data: float = 0.5,
    schedule: EDMSchedule | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """A network's description, as `build_denoiser` takes it.

    Args:
        schedule: smallest and largest noise level and the grid; the paper's by default.
        arguments: of the network's constructor; they win over the family's.
    """
    kind, defaults = FAMILIES[family]
    shape = {"img_resolution": resolution, "in_channels": channels, "out_channels": channels, "label_dim": label_dim}
    # The paper widens low-resolution networks at once, and larger ones after the first level.
    widths = {} if "channel_mult" in defaults else {"channel_mult": [2, 2, 2] if resolution <= 32 else [1, 2, 2, 2]}
    return described(kind, {**shape, **widths, **defaults, **arguments}, sigma_data, schedule or EDMSchedule())


def described(kind: str, network: Mapping[str, Any], sigma_data: float, schedule: EDMSchedule) -> dict[str, Any]:
    """The description of an EDM-preconditioned network of distillkit's own.

    Args:
        kind: its name in `models.networks`.
        network: arguments of its constructor.
    """
    arguments = {"network": dict(network), "sigma_data": sigma_data, "schedule": schedule.model_dump(mode="json")}
    return {"kind": f"distillkit:{kind}", "arguments": arguments}
