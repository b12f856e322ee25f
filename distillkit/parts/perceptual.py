"""LPIPS (Zhang et al. 2018) at 224 pixels, its VGG backbone read from safetensors."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillkit.downloads import only_planned
from distillkit.errors import DistillkitError
from distillkit.tensors import read_tensors

REPOSITORY, FILE, REVISION = "timm/vgg16.tv_in1k", "model.safetensors", "b8d8aa2dd860af9233c8c67385a8097fd6c35d3f"
"""torchvision's ImageNet weights of VGG-16 on the hub, the names of the convolutions unchanged."""
SIZE = 224
FROM = 32
"""Pixels of a side from which LPIPS is the default: it resizes to 224, and smaller images become mere colours."""


class LPIPS(nn.Module):
    """Perceptual distance of images (B, 1 or 3, H, W) in [-1, 1], resized bilinearly to 224 x 224; (B,).

    Always computed in float32: in bfloat16 single samples are several per cent off.

    Args:
        backbone: parameters of torchvision's VGG-16, `features.{i}.weight` and `features.{i}.bias`; None for random
            ones, which is enough for a plan.
    """

    def __init__(self, backbone: Mapping[str, Tensor] | None) -> None:
        super().__init__()
        import lpips

        with warnings.catch_warnings():
            # lpips 0.1.4 still passes torchvision's former argument `pretrained`.
            warnings.simplefilter("ignore")
            self.net = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        for name, parameter in self.net.net.named_parameters():
            if backbone is None:
                break
            # "slice2.5.weight" is the layer that torchvision calls "features.5.weight".
            _, layer, kind = name.split(".")
            with torch.no_grad():
                parameter.copy_(backbone[f"features.{layer}.{kind}"])
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast(a.device.type, enabled=False):
            both = torch.cat([a, b]).float()
            both = both.expand(-1, 3, -1, -1) if both.shape[1] == 1 else both
            both = F.interpolate(both, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
            first, second = both.chunk(2)
            return self.net.to(a.device)(first, second).flatten()

    @classmethod
    def pretrained(cls) -> LPIPS:
        """With ImageNet weights: the safetensors file that `DISTILLKIT_VGG16` names, or the hub's.

        Raises:
            DistillkitError: when they are neither at hand nor to be had.
        """
        path = os.environ.get("DISTILLKIT_VGG16")
        try:
            path = path or cached()
            if path is None and only_planned("VGG-16 for the distance lpips, 528 MB"):
                return cls(None)
            return cls(read_tensors(Path(path or download())))
        except Exception as error:  # the hub's client raises many kinds
            raise DistillkitError(
                f"the distance lpips, the default from {FROM} pixels on, needs VGG-16 weights that are not "
                f"here and cannot be had ({type(error).__name__}: {str(error).splitlines()[0]}). Use --distance "
                f"pseudo-huber (or l1, l2), or download {FILE} of huggingface.co/{REPOSITORY} elsewhere and name it in "
                "DISTILLKIT_VGG16, or go online once."
            ) from error


def cached() -> str | None:
    """The backbone's file in the hub's cache; None where it would be downloaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(REPOSITORY, FILE, revision=REVISION)
    return verified(found) if isinstance(found, str) else None


def download() -> str:
    """The backbone's file from the hub, at a fixed revision.

    Raises:
        ValueError: as `verified`.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    # One question first: without a network the hub's client would try for half a minute, with a warning each time.
    get_hf_file_metadata(hf_hub_url(REPOSITORY, FILE, revision=REVISION), timeout=10)
    return verified(hf_hub_download(REPOSITORY, FILE, revision=REVISION))


def verified(path: str) -> str:
    """The path of a file in the hub's cache.

    Raises:
        ValueError: when it does not match the sha256 that its revision records for it.
    """
    # The hub's cache names a large file by the sha256 in the repository, which the revision fixes.
    recorded = Path(path).resolve().name
    with Path(path).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if len(recorded) == len(found) and recorded != found:
        raise ValueError(f"{path} does not match its sha256; delete it and try again")
    return path
