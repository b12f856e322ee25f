"""The teachers that can be asked for by name: facts only; `fetch.py` gets them, `load.py` loads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distillkit.contracts.teacher import TeacherSpec
from distillkit.models.edm.families import Family, describe_network

EDM_HOST = "https://nvlabs-fi-cdn.nvidia.com"
EDM_LICENCE = "CC BY-NC-SA 4.0 (NVIDIA): attribution, no commercial use, share alike; it may bind students too"


@dataclass(frozen=True)
class CatalogEntry:
    """A teacher that can be asked for by name.

    Args:
        spec: its facts. For a published checkpoint the network's arguments are the paper's; the file's own count,
            and are checked against these.
        title: one line for people.
        aliases: other names that people type.
        url: the published file; empty for the embedded teacher.
        parameters: number of parameters.
        published: figures of the paper, quoted under the paper's own protocol.
        reference: address of the reference statistics that the published figure was measured against.
        sha256: of the published file, where one is known; elsewhere it is recorded at the first download.
    """

    spec: TeacherSpec
    title: str
    aliases: tuple[str, ...] = ()
    url: str = ""
    parameters: int = 0
    published: str = ""
    reference: str = ""
    sha256: str = ""

    @property
    def name(self) -> str:
        return self.spec.name


def _song(resolution: int, labels: int, dropout: float, *, ve: bool) -> dict[str, Any]:
    family: Family = "ncsnpp" if ve else "ddpmpp"
    return describe_network(family, resolution, 3, labels, augment_dim=9, dropout=dropout)


def _edm(
    name: str, stem: str, title: str, network: dict[str, Any], published: str, reference: str, parameters: int,
    *aliases: str,
) -> CatalogEntry:  # fmt: skip
    arguments = network["arguments"]
    resolution = arguments["img_resolution"]
    spec = TeacherSpec(
        name=name,
        shape=(3, resolution, resolution),
        num_classes=arguments["label_dim"],
        null_label=False,
        solver_steps=18 if resolution == 32 else 40,
        network=network,
        licence=EDM_LICENCE,
        source=f"{EDM_HOST}/edm/pretrained/{stem}.pkl",
    )
    return CatalogEntry(
        spec, title, (stem, *aliases), spec.source, parameters, published,
        f"{EDM_HOST}/edm/fid-refs/{reference}.npz",
    )  # fmt: skip


_DIGITS_NETWORK: Mapping[str, Any] = {
    "model_channels": 24,
    "channel_mult": [1, 2],
    "channel_mult_emb": 6,
    "num_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}

DIGITS = CatalogEntry(
    TeacherSpec(
        name="digits",
        shape=(1, 8, 8),
        num_classes=10,
        solver_steps=18,
        network=describe_network("adm", 8, 1, 10, **_DIGITS_NETWORK),
        licence="Apache-2.0 (weights); CC BY 4.0 (data)",
        source="trained by `distillkit teachers train digits` on scikit-learn's digits (CC BY 4.0)",
    ),
    "handwritten digits 8x8, 10 classes",
    parameters=479_209,
)

MIXTURE = CatalogEntry(
    TeacherSpec(
        name="mixture",
        shape=(2, 1, 1),
        solver_steps=18,
        network={"class": "PointMLP", "arguments": {"width": 128, "layers": 3}, "sigma_data": 0.5},
        licence="Apache-2.0",
        source="computed: eight Gaussians on a circle; the network was fitted to their exact denoiser",
    ),
    "eight Gaussians in the plane, known exactly",
    parameters=102_146,
)

_CIFAR_VP = "CIFAR-10 32x32, {}; DDPM++ (VP)"
_CIFAR_VE = "CIFAR-10 32x32, {}; NCSN++ (VE)"

CATALOG: Mapping[str, CatalogEntry] = {
    entry.name: entry
    for entry in (
        DIGITS,
        MIXTURE,
        _edm(
            "edm-imagenet64", "edm-imagenet-64x64-cond-adm", "ImageNet 64x64, 1,000 classes; ADM",
            describe_network("adm", 64, 3, 1000, augment_dim=0, dropout=0.10),
            "FID 2.22 at NFE 79; 1.36 stochastic at NFE 511", "imagenet-64x64", 295_899_267,
            "edm-imagenet-64", "edm-imagenet64-cond", "edm-imagenet-64x64", "edm-imagenet", "imagenet64",
        ),
        _edm(
            "edm-cifar10-cond", "edm-cifar10-32x32-cond-vp", _CIFAR_VP.format("10 classes"),
            _song(32, 10, 0.13, ve=False), "FID 1.79 at NFE 35", "cifar10-32x32", 55_735_299,
            "edm-cifar10-cond-vp", "edm-cifar10", "edm-cifar10-32x32", "cifar10-cond", "cifar10",
        ),
        _edm(
            "edm-cifar10-cond-ve", "edm-cifar10-32x32-cond-ve", _CIFAR_VE.format("10 classes"),
            _song(32, 10, 0.13, ve=True), "FID 1.79 at NFE 35", "cifar10-32x32", 56_400_643, "cifar10-cond-ve",
        ),
        _edm(
            "edm-cifar10-uncond", "edm-cifar10-32x32-uncond-vp", _CIFAR_VP.format("no classes"),
            _song(32, 0, 0.13, ve=False), "FID 1.97 at NFE 35", "cifar10-32x32", 55_733_891,
            "edm-cifar10-uncond-vp", "cifar10-uncond",
        ),
        _edm(
            "edm-cifar10-uncond-ve", "edm-cifar10-32x32-uncond-ve", _CIFAR_VE.format("no classes"),
            _song(32, 0, 0.13, ve=True), "FID 1.98 at NFE 35", "cifar10-32x32", 56_397_827, "cifar10-uncond-ve",
        ),
        _edm(
            "edm-ffhq64", "edm-ffhq-64x64-uncond-vp", "FFHQ faces 64x64, no classes; DDPM++ (VP)",
            _song(64, 0, 0.05, ve=False), "FID 2.39 at NFE 79", "ffhq-64x64", 61_805_571,
            "edm-ffhq64-vp", "edm-ffhq-64", "edm-ffhq", "ffhq64",
        ),
        _edm(
            "edm-ffhq64-ve", "edm-ffhq-64x64-uncond-ve", "FFHQ faces 64x64, no classes; NCSN++ (VE)",
            _song(64, 0, 0.05, ve=True), "FID 2.53 at NFE 79", "ffhq-64x64", 62_761_091, "ffhq64-ve",
        ),
        _edm(
            "edm-afhqv2-64", "edm-afhqv2-64x64-uncond-vp", "AFHQv2 animals 64x64, no classes; DDPM++ (VP)",
            _song(64, 0, 0.25, ve=False), "FID 1.96 at NFE 79", "afhqv2-64x64", 61_805_571,
            "edm-afhqv2-64-vp", "edm-afhqv2", "edm-afhq64", "afhqv2-64",
        ),
        _edm(
            "edm-afhqv2-64-ve", "edm-afhqv2-64x64-uncond-ve",
            "AFHQv2 animals 64x64, no classes; NCSN++ (VE)", _song(64, 0, 0.25, ve=True),
            "FID 2.16 at NFE 79", "afhqv2-64x64", 62_761_091, "afhqv2-64-ve",
        ),
    )
}  # fmt: skip

ALIASES: Mapping[str, str] = {alias: entry.name for entry in CATALOG.values() for alias in entry.aliases}


def catalog_name(name: str) -> str | None:
    """The catalogue's own name for a name or alias, in any case; None for one that it does not know."""
    name = name.lower()
    return name if name in CATALOG else ALIASES.get(name)
