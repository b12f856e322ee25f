"""The published models of guided-diffusion (Dhariwal & Nichol 2021, arXiv 2105.05233, Tables 4 and 5)."""

from __future__ import annotations

from collections.abc import Mapping

from distillkit.models.adm.settings import ADMSettings, Sizes, describe, published
from distillkit.models.store.card import Card, TeacherOffer
from distillkit.models.store.fetch import offer_of

HOST = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021"
LICENCE = "MIT (OpenAI, guided-diffusion)"
MULT: Mapping[int, tuple[float, ...]] = {
    64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4), 512: (0.5, 1, 1, 2, 2, 4, 4),
}  # fmt: skip
"""Widths of levels by the side of pictures."""


def _adm(
    name: str, stem: str, title: str, side: int, classes: int, parameters: int, published_figure: str, reference: str,
    *aliases: str,
) -> Card:  # fmt: skip
    sizes = Sizes(
        in_channels=3,
        model_channels=192 if side == 64 else 256,
        channel_mult=MULT[side],
        num_blocks=3 if side == 64 else 2,
        levels=tuple(level for level in range(len(MULT[side])) if side >> level in (32, 16, 8)),
        classes=classes,
    )
    spec = describe(name, sizes, ADMSettings.model_validate({"image_size": side, **published(side, sizes)}))
    spec = spec.model_copy(update={"licence": LICENCE, "source": f"{HOST}/{stem}.pt"})
    return Card(
        spec, title, (stem, *aliases), spec.source, parameters, published_figure,
        f"{HOST}/ref_batches/{reference}.npz",
    )  # fmt: skip


def _imagenet(name: str, side: int, classes: int, parameters: int, figure: str, *aliases: str) -> Card:
    kind = f"{classes:,} classes" if classes else "no classes"
    labelled = "" if side == 512 else "_labeled"
    return _adm(
        name, f"{side}x{side}_diffusion{'' if classes else '_uncond'}", f"ImageNet {side}x{side}, {kind}; ADM", side,
        classes, parameters, figure, f"imagenet/{side}/VIRTUAL_imagenet{side}{labelled}", *aliases,
    )  # fmt: skip


def _lsun(scene: str, figure: str) -> Card:
    return _adm(
        f"adm-lsun-{scene}", f"lsun_{scene}", f"LSUN {scene} 256x256, no classes; ADM", 256, 0, 552_807_171, figure,
        f"lsun/{scene}/VIRTUAL_lsun_{scene}256",
    )  # fmt: skip


CATALOG: Mapping[str, Card] = {
    card.name: card
    for card in (
        _imagenet("adm-imagenet64", 64, 1000, 295_899_267, "FID 2.07 at NFE 250", "adm-imagenet-64", "adm"),
        _imagenet("adm-imagenet128", 128, 1000, 421_522_691, "FID 5.91 at NFE 250", "adm-imagenet-128"),
        _imagenet("adm-imagenet256", 256, 1000, 553_831_171, "FID 10.94 at NFE 250", "adm-imagenet-256"),
        _imagenet("adm-imagenet256-uncond", 256, 0, 552_807_171, "FID 26.21 at NFE 250"),
        _imagenet("adm-imagenet512", 512, 1000, 558_994_179, "FID 23.24 at NFE 250", "adm-imagenet-512"),
        _lsun("bedroom", "FID 1.90 at NFE 1000"),
        _lsun("cat", "FID 5.57 at NFE 1000"),
        _lsun("horse", "FID 2.57 at NFE 1000"),
    )
}
"""Published teachers by name."""


def offers() -> dict[str, TeacherOffer]:
    """What the hook `distillkit_teachers` offers of them: downloaded and converted when one is first loaded."""
    return {name: offer_of(card) for name, card in CATALOG.items()}
