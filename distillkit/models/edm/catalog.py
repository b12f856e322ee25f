"""EDM's published teachers: the facts of each (Karras et al. 2022, arXiv 2206.00364)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distillkit.contracts.codec import Pixels
from distillkit.contracts.conditioner import ClassLabels, Unconditional
from distillkit.contracts.teacher import TeacherSpec
from distillkit.models.build import own_part
from distillkit.models.edm.families import Family, describe_network
from distillkit.models.store.card import Card, TeacherOffer
from distillkit.models.store.fetch import offer_of

EDM_HOST = "https://nvlabs-fi-cdn.nvidia.com"
EDM_LICENCE = "CC BY-NC-SA 4.0 (NVIDIA): attribution, no commercial use, share alike; it may bind students too"


def _song(resolution: int, labels: int, dropout: float, *, ve: bool) -> dict[str, Any]:
    family: Family = "ncsnpp" if ve else "ddpmpp"
    return describe_network(family, resolution, 3, labels, augment_dim=9, dropout=dropout)


def _edm(
    name: str, stem: str, title: str, network: dict[str, Any], published: str, reference: str, parameters: int,
    *aliases: str,
) -> Card:  # fmt: skip
    inner = network["arguments"]["network"]
    resolution, classes = inner["img_resolution"], inner["label_dim"]
    spec = TeacherSpec(
        name=name,
        shape=(3, resolution, resolution),
        network=network,
        conditioner=own_part(ClassLabels(classes=classes, null_label=False) if classes else Unconditional()),
        codec=own_part(Pixels()),
        solver_steps=18 if resolution == 32 else 40,
        licence=EDM_LICENCE,
        source=f"{EDM_HOST}/edm/pretrained/{stem}.pkl",
    )
    return Card(
        spec, title, (stem, *aliases), spec.source, parameters, published,
        f"{EDM_HOST}/edm/fid-refs/{reference}.npz",
    )  # fmt: skip


_CIFAR_VP = "CIFAR-10 32x32, {}; DDPM++ (VP)"
_CIFAR_VE = "CIFAR-10 32x32, {}; NCSN++ (VE)"

CATALOG: Mapping[str, Card] = {
    card.name: card
    for card in (
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
"""The published teachers of EDM by name."""


def offers() -> dict[str, TeacherOffer]:
    """What the hook `distillkit_teachers` offers of them: downloaded and converted when one is first loaded."""
    return {name: offer_of(card) for name, card in CATALOG.items()}
