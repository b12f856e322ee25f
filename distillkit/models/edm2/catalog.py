"""EDM2's published teachers: the facts of each (Karras et al. 2024, arXiv 2312.02696 and 2406.02507).

A training has many averages of its weights (post-hoc EMA), and the best one depends on the figure and on the guidance:
each is a file of its own, named by its size, its images in thousands and its relative EMA length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from distillkit.contracts.codec import Codec, Pixels
from distillkit.contracts.conditioner import ClassLabels, Unconditional
from distillkit.contracts.teacher import TeacherSpec
from distillkit.models.build import own_part
from distillkit.models.edm.catalog import EDM_HOST, EDM_LICENCE
from distillkit.models.edm2.families import DROPOUTS, NFE, STEPS, WIDTHS, describe_network
from distillkit.models.edm2.vae import StabilityVAE
from distillkit.models.store.card import Card, TeacherOffer
from distillkit.models.store.fetch import offer_of

FOLDER = f"{EDM_HOST}/edm2/posthoc-reconstructions"
REFERENCES = f"{EDM_HOST}/edm2/dataset-refs"

PARAMETERS: Mapping[str, int] = {
    "img512-xs": 124_713_253, "img512-s": 280_212_837, "img512-m": 497_807_781, "img512-l": 777_498_085,
    "img512-xl": 1_119_283_749, "img512-xxl": 1_523_164_773, "img512-xs-uncond": 124_201_253,
    "img512-s-uncond": 279_444_837, "img64-xs": 124_710_949, "img64-s": 280_209_381, "img64-m": 497_803_173,
    "img64-l": 777_492_325, "img64-xl": 1_119_276_837,
}  # fmt: skip
"""Of each network, by data, size, and whether it is unconditional."""

PLAIN: tuple[tuple[str, str, str], ...] = (
    ("img512-xs-fid", "2147483-0.135", "FID 3.53"), ("img512-xs-dino", "2147483-0.200", "FD-DINOv2 103.39"),
    ("img512-s-fid", "2147483-0.130", "FID 2.56"), ("img512-s-dino", "2147483-0.190", "FD-DINOv2 68.64"),
    ("img512-m-fid", "2147483-0.100", "FID 2.25"), ("img512-m-dino", "2147483-0.155", "FD-DINOv2 58.44"),
    ("img512-l-fid", "1879048-0.085", "FID 2.06"), ("img512-l-dino", "1879048-0.155", "FD-DINOv2 52.25"),
    ("img512-xl-fid", "1342177-0.085", "FID 1.96"), ("img512-xl-dino", "1342177-0.155", "FD-DINOv2 45.96"),
    ("img512-xxl-fid", "0939524-0.070", "FID 1.91"), ("img512-xxl-dino", "0939524-0.150", "FD-DINOv2 42.84"),
    ("img64-s-fid", "1073741-0.075", "FID 1.58"), ("img64-m-fid", "2147483-0.060", "FID 1.43"),
    ("img64-l-fid", "1073741-0.040", "FID 1.33"), ("img64-xl-fid", "0671088-0.040", "FID 1.33"),
)  # fmt: skip
"""Name, file and figure without guidance (2312.02696, Tables 2, 3 and 5)."""

GUIDED: tuple[tuple[str, str, str, str, float], ...] = (
    ("img512-xs-guid-fid", "2147483-0.045", "FID 2.91", "xs-uncond-2147483-0.045", 1.4),
    ("img512-xs-guid-dino", "2147483-0.150", "FD-DINOv2 79.94", "xs-uncond-2147483-0.150", 1.7),
    ("img512-s-guid-fid", "2147483-0.025", "FID 2.23", "xs-uncond-2147483-0.025", 1.4),
    ("img512-s-guid-dino", "2147483-0.085", "FD-DINOv2 52.32", "xs-uncond-2147483-0.085", 1.9),
    ("img512-m-guid-fid", "2147483-0.030", "FID 2.01", "xs-uncond-2147483-0.030", 1.2),
    ("img512-m-guid-dino", "2147483-0.015", "FD-DINOv2 41.98", "xs-uncond-2147483-0.015", 2.0),
    ("img512-l-guid-fid", "1879048-0.015", "FID 1.88", "xs-uncond-2147483-0.015", 1.2),
    ("img512-l-guid-dino", "1879048-0.035", "FD-DINOv2 38.20", "xs-uncond-2147483-0.035", 1.7),
    ("img512-xl-guid-fid", "1342177-0.020", "FID 1.85", "xs-uncond-2147483-0.020", 1.2),
    ("img512-xl-guid-dino", "1342177-0.030", "FD-DINOv2 35.67", "xs-uncond-2147483-0.030", 1.7),
    ("img512-xxl-guid-fid", "0939524-0.015", "FID 1.81", "xs-uncond-2147483-0.015", 1.2),
    ("img512-xxl-guid-dino", "0939524-0.015", "FD-DINOv2 33.09", "xs-uncond-2147483-0.015", 1.7),
    ("img512-s-autog-fid", "2147483-0.070", "FID 1.34", "xs-0134217-0.125", 2.1),
    ("img512-s-autog-dino", "2147483-0.120", "FD-DINOv2 36.67", "xs-0134217-0.165", 2.45),
    ("img512-xxl-autog-fid", "0939524-0.075", "FID 1.25", "m-0268435-0.155", 2.05),
    ("img512-xxl-autog-dino", "0939524-0.130", "FD-DINOv2 24.18", "m-0268435-0.205", 2.3),
    ("img512-s-uncond-autog-fid", "2147483-0.070", "FID 3.86", "xs-uncond-0134217-0.110", 2.85),
    ("img512-s-uncond-autog-dino", "2147483-0.090", "FD-DINOv2 90.39", "xs-uncond-0134217-0.125", 2.9),
    ("img64-s-autog-fid", "1073741-0.045", "FID 1.01", "xs-0134217-0.110", 1.7),
    ("img64-s-autog-dino", "1073741-0.105", "FD-DINOv2 31.85", "xs-0134217-0.175", 2.2),
)  # fmt: skip
"""Name, file, figure, the file of the guiding network and its weight: guided by an unconditional network (2312.02696,
Tables 2 and 5) or by a worse one (2406.02507, Table 1)."""


def _kind_of(name: str) -> str:
    """ "img512-xs-uncond" of a name or a file that begins so."""
    return max((kind for kind in PARAMETERS if name.startswith(f"{kind}-")), key=len)


def _card(name: str, stem: str, published: str, aliases: tuple[str, ...], variant_of: str) -> Card:
    """The card of a file.

    Args:
        name: of the teacher, after "edm2-".
        stem: of the file, after "edm2-".
    """
    kind = _kind_of(stem)
    data, size, *uncond = kind.split("-")
    latent, classes = data == "img512", 0 if uncond else 1000
    channels = 4 if latent else 3
    network = {"model_channels": WIDTHS[size], "dropout": DROPOUTS.get(size, 0.0)}
    codec: Codec = StabilityVAE() if latent else Pixels()
    spec = TeacherSpec(
        name=f"edm2-{name}",
        shape=(channels, 64, 64),
        network=describe_network(64, channels, classes, network),
        conditioner=own_part(ClassLabels(classes=classes, null_label=False) if classes else Unconditional()),
        codec=own_part(codec),
        solver_steps=STEPS,
        licence=EDM_LICENCE,
        source=f"{FOLDER}/edm2-{stem}.pkl",
    )
    pictures = "ImageNet 512x512 in latents" if latent else "ImageNet 64x64"
    title = f"{pictures}, {'1,000' if classes else 'no'} classes; EDM2-{size.upper()}"
    return Card(
        spec, title, tuple(f"edm2-{alias}" for alias in aliases), spec.source, PARAMETERS[kind], weight_bytes=2,
        variant_of=variant_of, published=published, reference=f"{REFERENCES}/{data}.pkl",
    )  # fmt: skip


def _cards() -> Iterator[Card]:
    """One for each file: what minimises FID without guidance has its size's own name, and lists name it alone."""
    for name, average, figure in PLAIN:
        kind = _kind_of(name)
        stem, is_first = f"{kind}-{average}", name.endswith("-fid")
        aliases = (name, stem) if is_first else (stem,)
        yield _card(
            kind if is_first else name, stem, f"{figure} at NFE {NFE}", aliases, "" if is_first else f"edm2-{kind}"
        )
    guided: dict[str, list[tuple[str, str]]] = {}
    guides: dict[str, list[str]] = {}
    for name, average, figure, guide, weight in GUIDED:
        kind = _kind_of(name)
        guide = f"{kind.partition('-')[0]}-{guide}"  # noqa: PLW2901 - of the same data
        said = f"{figure} at NFE {2 * NFE}, guided by edm2-{guide} with weight {weight:g}"
        guided.setdefault(f"{kind}-{average}", []).append((name, said))
        guides.setdefault(guide, []).append(f"edm2-{name}")
    for stem, uses in guided.items():
        (name, _), *others = uses
        figures = "; ".join(said for _, said in uses)
        yield _card(name, stem, figures, (*(other for other, _ in others), stem), _listed(_kind_of(stem)))
    for stem, names in guides.items():
        yield _card(stem, stem, f"guides {', '.join(names)}", (), _listed(_kind_of(stem)))


def _listed(kind: str) -> str:
    """The teacher in whose place lists name others of its size."""
    size = kind.removesuffix("-uncond")
    return f"edm2-{'img64-s' if size == 'img64-xs' else size}"


CATALOG: Mapping[str, Card] = {card.name: card for card in _cards()}
"""The published teachers of EDM2 by name."""


def offers() -> dict[str, TeacherOffer]:
    """What the hook `distillkit_teachers` offers of them: downloaded and converted when one is first loaded."""
    return {name: offer_of(card) for name, card in CATALOG.items()}
