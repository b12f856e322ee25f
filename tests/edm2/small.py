"""A small EDM2 network and its weights, which a reference implementation computed with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distillkit import build_denoiser
from distillkit.diffusion import EDMSchedule
from distillkit.models.edm.families import described
from distillkit.models.edm2.denoiser import EDM2Denoiser
from distillkit.models.edm2.names import ours

OUTER = ("sigma_data", "logvar_channels")


def description_of(constructor: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The network that arguments of the reference's constructor describe."""
    given = {**constructor, **changes}
    channels = given.pop("img_channels")
    outer = {name: given.pop(name) for name in OUTER if name in given}
    inner = {**given, "in_channels": channels, "out_channels": channels}
    found = described("EDM2UNet", inner, outer.pop("sigma_data", 0.5), EDMSchedule())
    return {**found, "arguments": {**found["arguments"], **outer}}


def small(golden: Any, **changes: Any) -> EDM2Denoiser:
    """With the golden's weights, of which the network takes those that it has."""
    denoiser = build_denoiser(description_of(golden.description["constructor"], **changes))
    assert isinstance(denoiser, EDM2Denoiser)
    state: dict[str, Tensor] = ours({name: value.float() for name, value in golden.part("net.").items()})
    denoiser.load_state_dict({name: state[name] for name in denoiser.state_dict()})
    return denoiser.eval()
