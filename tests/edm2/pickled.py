"""Writes snapshots of EDM2's form with Python's own pickler: a network and an encoder that carry their source code."""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distillkit.models.edm2.denoiser import EDM2Denoiser
from tests.foreign.edm_format import SOURCE, EasyDict, Persistent, edm_modules, persistent

MEANS, STDS = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)


class Encoder:
    """An object that is no module, pickled as EDM2's persistence pickles it."""

    def __init__(self, class_name: str, **state: Any) -> None:
        self.class_name, self.state = class_name, state

    def __reduce__(self):
        state = {"_init_args": (), "_init_kwargs": EasyDict(), **self.state}
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self.class_name, "state": state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


class Bound:
    """A method of an object, as pickles have it."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


def latents(**changes: Any) -> Encoder:
    """The encoder of ImageNet-512's latents."""
    scale = np.float32(0.5) / np.float32(STDS)
    state = {
        "vae_name": "stabilityai/sd-vae-ft-mse", "scale": scale, "bias": -np.float32(MEANS) * scale, "batch_size": 8,
        "_vae": None,
    }  # fmt: skip
    return Encoder("StabilityVAEEncoder", **{**state, **changes})


def write_snapshot(
    path: Path, denoiser: EDM2Denoiser, kwargs: Mapping[str, Any], encoder: Encoder | None, *,
    class_name: str = "Precond", half: bool = True, hook: str = "",
) -> Path:  # fmt: skip
    """{"ema": network, "encoder": ..., "loss_fn": ...} with weights in half precision, as EDM2's training writes it;
    with a bound method of that name as a hook of a layer, as SiD's networks have it."""
    network = Persistent(class_name, _init_args=(), _init_kwargs=EasyDict(kwargs), img_resolution=8)
    parts = {"unet": denoiser.model}
    if denoiser.logvar is not None:
        parts |= {"logvar_fourier": denoiser.logvar.fourier, "logvar_linear": denoiser.logvar.linear}
    with edm_modules():
        for name, part in parts.items():
            network.add_module(name, persistent(part))
        if hook:
            network.unet.out_conv.__dict__["_forward_pre_hooks"] = OrderedDict({0: Bound(Encoder("MPConv"), hook)})
        data = EasyDict(encoder=encoder, dataset_kwargs={"path": "x.zip"}, loss_fn=Encoder("EDM2Loss", P_mean=-0.4))
        data["ema"] = network.to(torch.float16) if half else network
        path.write_bytes(pickle.dumps(data))
    return path
