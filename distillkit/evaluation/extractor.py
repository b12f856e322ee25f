"""Feature extractors behind one interface: decoded samples in, features out, weights known by their hash."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from distillkit.contracts.codec import Content
from distillkit.errors import DistillkitError, UsageError
from distillkit.evaluation.protocol import ExtractorSpec
from distillkit.files import cache_folder, sha256
from distillkit.models.hashes import content_hash

INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{INCEPTION_FILE}"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"


def evaluation_folder() -> Path:
    """Where networks, reference statistics and the lock of their hashes are."""
    return cache_folder() / "evaluation"


class FeatureExtractor(nn.Module, ABC):
    """A frozen network. Subclasses set `spec` and compute features in float32, without autocast.

    Attributes:
        spec: identity, hashed into every protocol.
        classes: number of classes of `probabilities`; 0 where there are none.
        takes: what it computes features of.
    """

    spec: ExtractorSpec
    classes: ClassVar[int] = 0
    takes: ClassVar[tuple[Content, ...]] = ("images",)

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Decoded samples, such as images (B, C, H, W) uint8 -> features (B, spec.dim) float32."""

    def probabilities(self, pixels: Tensor) -> Tensor:
        """Class probabilities (B, classes), for the Inception score.

        Raises:
            UsageError: where the extractor has no classes.
        """
        raise UsageError(f"{self.spec.id} has no classes, so there is no Inception score with it")

    def with_probabilities(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features and class probabilities; where both come from one pass, extractors make them in one.

        Raises:
            UsageError: as `probabilities`.
        """
        return self(pixels), self.probabilities(pixels)


def scaled(pixels: Tensor, shape: tuple[int, ...], extractor: str, judged: str) -> Tensor:
    """Images (B, *shape) uint8 as float32 in [-1, 1], for an extractor that takes no others.

    Args:
        extractor, judged: its name and what it is for, for messages.

    Raises:
        DistillkitError: for images of another shape.
    """
    if tuple(pixels.shape[1:]) != shape:
        raise DistillkitError(
            f"{extractor} judges {judged} of {shape}, not images of {tuple(pixels.shape[1:])}; choose another "
            "--protocol or --extractor"
        )
    return pixels.float() / 127.5 - 1


class Inception(FeatureExtractor):
    """The 2015 Inception network (TorchScript, pool3, 2,048 numbers), through clean-fid's wrapper.

    Args:
        folder: holds `inception-2015-12-05.pt`.
        mode: "in-graph": the network's own TensorFlow-1 bilinear resizing (EDM, ADM, StyleGAN). "clean": clean-fid's
            antialiased bicubic resizing of every channel in float32 (Parmar et al. 2022, arXiv 2104.11222).
        weights_sha256: what the file must be; a TorchScript file is a program, so it is not loaded before.

    Raises:
        DistillkitError: when the file is missing or another one.
    """

    def __init__(
        self, folder: Path, mode: Literal["in-graph", "clean"], weights_sha256: str = INCEPTION_SHA256
    ) -> None:
        super().__init__()
        path = folder / INCEPTION_FILE
        if not path.is_file():
            raise DistillkitError(
                f"the Inception network is not here. Fetch it with `distillkit protocols fetch edm-cifar10`, or place "
                f"{INCEPTION_URL} at {path}"
            )
        found = sha256(path)
        if found != weights_sha256:
            raise DistillkitError(
                f"{path} is not the Inception network that the protocol names:\n  expected sha256 {weights_sha256}\n"
                f"  found sha256 {found}\nIt was not loaded."
            )
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit's farewell
            self.network = InceptionV3W(str(folder), download=False, resize_inside=mode == "in-graph")
        self._resize = build_resizer("clean") if mode == "clean" else None
        resize = {
            "in-graph": "TensorFlow-1 bilinear to 299, in the network",
            "clean": "PIL bicubic, antialiased, per channel in float32, to 299, clipped",
        }
        self.spec = ExtractorSpec(
            id="inception-2015-12-05/pool3", weights_sha256=found, dim=2048, input="RGB 0..255", resize=resize[mode]
        )

    def forward(self, pixels: Tensor) -> Tensor:
        pixels = pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels
        if self._resize is None:
            return self.network(pixels.float()).float()
        images = pixels.permute(0, 2, 3, 1).cpu().numpy()
        resized = np.stack([self._resize(image) for image in images]).transpose(0, 3, 1, 2)
        return self.network(torch.from_numpy(resized).to(pixels.device)).float()


class DINOv2(FeatureExtractor):
    """DINOv2 features of the class token (Oquab et al. 2024; Stein et al. 2023 on judging diffusion models by them).

    Images are resized to 224 by antialiased bicubic interpolation in float32 and normalised with ImageNet's moments.
    This is timm's port of the weights; figures made with other resizing or ports belong to other protocols.

    Args:
        name: timm's name of the network; `pretrained` is for tests.

    Raises:
        UsageError: when timm is not installed.
        DistillkitError: when its weights cannot be had.
    """

    mean: Tensor
    std: Tensor
    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, name: str = "vit_large_patch14_dinov2.lvd142m", *, pretrained: bool = True) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise UsageError("DINOv2 features need another library: pip install 'distillkit[dinov2]'") from error
        try:
            network: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, img_size=224)
        except Exception as error:  # the hub's client raises many kinds
            raise DistillkitError(
                f"the weights of {name} cannot be had ({type(error).__name__}: {str(error).splitlines()[0]})"
            ) from error
        self.network = network.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(self.MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(self.STD)[:, None, None])
        self.spec = ExtractorSpec(
            id=f"{name.partition('.')[0]}/cls", weights_sha256=content_hash(network.state_dict()),
            dim=int(network.num_features), input="RGB 0..1, ImageNet-normalised",
            resize="torch bicubic, antialiased, float32, to 224",
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.expand(-1, 3, -1, -1).float() / 255 if pixels.shape[1] == 1 else pixels.float() / 255
        images = nn.functional.interpolate(images, size=(224, 224), mode="bicubic", antialias=True).clamp(0, 1)
        return self.network((images - self.mean) / self.std).float()


class ModuleExtractor(FeatureExtractor):
    """Any network as an extractor: pixels (B, C, H, W) float32 in 0..255 -> features (B, d).

    Args:
        network: the module.
        name: network/layer, for people and for the label.
        weights_sha256: of its file; of its state dict by default.
    """

    def __init__(self, network: nn.Module, name: str, shape: tuple[int, ...], weights_sha256: str = "") -> None:
        super().__init__()
        self.network = network.eval()
        with torch.no_grad():
            dim = int(self.network(torch.zeros(2, *shape)).flatten(1).shape[1])
        self.spec = ExtractorSpec(
            id=name,
            weights_sha256=weights_sha256 or content_hash(network.state_dict()),
            dim=dim,
            input=f"{shape} 0..255",
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels.float()).flatten(1).float()


def torchscript_extractor(path: Path, shape: tuple[int, ...], expected_sha256: str = "") -> ModuleExtractor:
    """A TorchScript file as an extractor. TorchScript is a program: load only what you trust.

    Args:
        expected_sha256: what the file must be, which is checked before it is loaded; empty to take any.

    Raises:
        UsageError: when it is not there, or not TorchScript.
        DistillkitError: when it is another file than expected, or does not take images of this shape.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no TorchScript file there")
    found = sha256(path)
    if expected_sha256 and found != expected_sha256:
        raise DistillkitError(
            f"{path} is not the file that was expected:\n  expected sha256 {expected_sha256}\n  found sha256 {found}\n"
            "It was not loaded."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            network = torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, OSError, ValueError) as error:
        raise UsageError(f"{path} is not a TorchScript file: {str(error).splitlines()[0]}") from error
    try:
        return ModuleExtractor(network, f"{path.stem}/output", shape, found)
    except RuntimeError as error:
        raise DistillkitError(
            f"{path} does not take images {shape} in 0..255: {str(error).splitlines()[-1]}"
        ) from error


SHIPPED: Mapping[str, Callable[[], FeatureExtractor]] = {
    "inception": lambda: Inception(evaluation_folder(), "in-graph"),
    "inception-clean": lambda: Inception(evaluation_folder(), "clean"),
    "dinov2": DINOv2,
}
"""The extractors of this package by name."""
