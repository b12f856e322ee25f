"""The published models of DiT (Peebles & Xie 2023, arXiv 2212.09748) and SiT (Ma et al. 2024, arXiv 2401.08740)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from distillkit.models.adm.catalog import HOST as REFERENCES
from distillkit.models.dit.layout import HEADS, codec_of, describe
from distillkit.models.store.card import Card, TeacherOffer
from distillkit.models.store.fetch import offer_of

DIT_HOST = "https://dl.fbaipublicfiles.com/DiT/models"
SIT_FILE = (
    "https://www.dl.dropboxusercontent.com/scl/fi/as9oeomcbub47de5g4be0/SiT-XL-2-256.pt"
    "?rlkey=uxzxmpicu46coq3msb17b9ofa&dl=0"
)
DIT_LICENCE = "CC BY-NC 4.0 (Meta): attribution, no commercial use; it may bind students too"
SIT_LICENCE = "MIT (Ma et al., SiT)"
XL = 1152


def _xl2(model: Literal["DiT", "SiT"], side: int, url: str, licence: str, figure: str, *aliases: str) -> Card:
    network = {
        "img_resolution": side // 8, "patch_size": 2, "in_channels": 4, "hidden_size": XL, "depth": 28,
        "mlp_width": 4 * XL, "num_heads": HEADS[XL], "label_dim": 1000, "null_label": True,
    }  # fmt: skip
    name, labelled = f"{model.lower()}-xl2-{side}", "" if side == 512 else "_labeled"
    spec = describe(name, model, network, codec_of("ema", 4)).model_copy(update={"licence": licence, "source": url})
    return Card(
        spec,
        f"ImageNet {side}x{side}, 1,000 classes, latents; {model}-XL/2",
        (f"{model.lower()}-xl-2-{side}x{side}", f"{model.lower()}-xl-2-{side}", f"{name}x{side}", *aliases),
        url,
        674_816_272,
        figure,
        f"{REFERENCES}/ref_batches/imagenet/{side}/VIRTUAL_imagenet{side}{labelled}.npz",
    )


CATALOG: Mapping[str, Card] = {
    card.name: card
    for card in (
        _xl2(
            "DiT", 256, f"{DIT_HOST}/DiT-XL-2-256x256.pt", DIT_LICENCE, "FID 2.27 at 250 steps with guidance 1.5",
            "dit-xl2", "dit",
        ),
        _xl2("DiT", 512, f"{DIT_HOST}/DiT-XL-2-512x512.pt", DIT_LICENCE, "FID 3.04 at 250 steps with guidance 1.5"),
        _xl2(
            "SiT", 256, SIT_FILE, SIT_LICENCE, "FID 2.06 at 250 stochastic steps with guidance 1.5", "sit-xl2", "sit"
        ),
    )
}  # fmt: skip
"""Published teachers by name."""


def offers() -> dict[str, TeacherOffer]:
    """What the hook `distillkit_teachers` offers of them: downloaded and converted when one is first loaded."""
    return {name: offer_of(card) for name, card in CATALOG.items()}
