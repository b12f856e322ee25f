"""One generator, or one set of images, under one protocol: features to disk, then every figure from them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from distillkit.errors import DistillkitError, UsageError
from distillkit.evaluation.extractor import FeatureExtractor
from distillkit.evaluation.features import GROUPS, FeatureFile, groups_of, moments_of
from distillkit.evaluation.frechet import Jackknife, distance_to, without
from distillkit.evaluation.kernel import inception_score, kernel_distance
from distillkit.evaluation.neighbours import manifolds, memorisation
from distillkit.evaluation.record import Figure
from distillkit.evaluation.reference import Reference
from distillkit.evaluation.sampling import require_pixels
from distillkit.evaluation.score import Ruler

METRICS = ("fd", "kid", "prdc", "is", "memorisation")
"""Fréchet distance; kernel distance; precision, recall, density, coverage; Inception score; nearest neighbours."""


class Extracted:
    """Features of samples, and the hash of every image, in files that are appended to and outlive the process.

    Args:
        folder: where the files lie.
        dim: features of a sample. row: numbers kept of it, class probabilities included.
    """

    def __init__(self, folder: Path, dim: int, row: int) -> None:
        self.folder, self.dim = folder, dim
        self.features = FeatureFile(folder / "features.f32", row)
        self._hashes = folder / "images.sha256"
        self._hashes.touch()
        # What stopped between the two files counts as far as both have it.
        self.cut(min(len(self.features), self._hashes.stat().st_size // 32))

    def __len__(self) -> int:
        return len(self.features)

    def cut(self, count: int) -> None:
        """Keep the first `count` samples."""
        self.features.cut(count)
        with self._hashes.open("rb+") as file:
            file.truncate(32 * count)

    def add(self, rows: Tensor, pixels: Tensor) -> None:
        self.features.add(rows)
        images = pixels.cpu().contiguous().numpy()
        with self._hashes.open("ab") as file:
            file.write(b"".join(hashlib.sha256(image.tobytes()).digest() for image in images))

    def append(self, other: Extracted) -> None:
        """Take in what another process extracted."""
        for mine, theirs in ((self.features.path, other.features.path), (self._hashes, other._hashes)):
            with mine.open("ab") as out, theirs.open("rb") as part:
                shutil.copyfileobj(part, out)

    @property
    def samples_sha256(self) -> str:
        """Hash over the images' hashes in order: the same for any batch size and number of processes."""
        return hashlib.sha256(self._hashes.read_bytes()).hexdigest()

    @property
    def probabilities(self) -> Tensor:
        return self.features.all()[:, self.dim :]


def row_length(extractor: FeatureExtractor, metrics: Sequence[str]) -> int:
    """Numbers that are kept of a sample: its features, and class probabilities where a metric needs them.

    Raises:
        UsageError: for a metric that is unknown or that the extractor cannot serve.
    """
    if strange := [m for m in metrics if m not in METRICS]:
        raise UsageError(f"unknown metric {strange[0]!r}; known: {', '.join(METRICS)}")
    if "is" in metrics and not extractor.classes:
        raise UsageError(f"the metric 'is' needs class probabilities, and {extractor.spec.id} has none")
    return extractor.spec.dim + (extractor.classes if "is" in metrics else 0)


@torch.inference_mode()
def extract(
    extractor: FeatureExtractor, images: Iterable[Tensor], kept: Extracted, advance: Callable[[int], None]
) -> Iterator[Tensor]:
    """Append the features of batches of pixels (B, C, H, W) uint8, which are handed through.

    Raises:
        DistillkitError: when they are not pixels, or features are not finite.
    """
    with_classes = kept.features.dim > kept.dim
    for pixels in images:
        rows = extractor(require_pixels(pixels))
        if with_classes:
            rows = torch.cat([rows, extractor.probabilities(pixels)], dim=1)
        try:
            kept.add(rows, pixels)
        except ValueError as error:
            raise DistillkitError(f"{extractor.spec.id}: {error}") from error
        advance(len(pixels))
        yield pixels


def figures_of(kept: Extracted, ruler: Ruler, metrics: Sequence[str]) -> tuple[dict[str, Figure], list[str]]:
    """All figures of the features, the protocol's own first, and remarks that belong beside them.

    Raises:
        UsageError: for a metric that needs the reference's features where only moments are kept.
    """
    label, reference, count = ruler.protocol.label, ruler.reference, len(kept)
    figures, remarks = {label: frechet_figure(kept, reference)}, []
    dim = ruler.extractor.spec.dim
    if count <= dim:
        remarks.append(
            f"{count:,} samples span at most {count - 1:,} of {dim:,} dimensions: the covariance is singular and the "
            "distance strongly biased"
        )
    others = [metric for metric in metrics if metric not in ("fd", "is")]
    if others and reference.features is None:
        raise UsageError(
            f"{', '.join(others)} need the reference's features, and {reference.id} has moments only; make a reference "
            "with `distillkit reference make --keep-features`"
        )
    name = ruler.protocol.extractor.id
    if others and reference.features is not None:
        generated, real = kept.features.all()[:, :dim], reference.features
        n = f"{count}/{len(real)}"
        if "kid" in others:
            figures[f"KD[{name}]-{n}"] = Figure(value=kernel_distance(generated, real), estimator="kernel-cubic-full@1")
        if "prdc" in others:
            found = manifolds(generated, real)
            for key in ("precision", "recall", "density", "coverage"):
                figures[f"{key}[{name}]-{n}"] = Figure(value=getattr(found, key), estimator="neighbours-k3@1")
        if "memorisation" in others:
            figures[f"memorisation[{name}]-{n}"] = Figure(value=memorisation(generated, real), estimator="nearest@1")
    if "is" in metrics:
        value, _ = inception_score(kept.probabilities)
        figures[f"IS[{name}]-{count}"] = Figure(value=value, estimator="one split@1")
    return figures, remarks


def frechet_figure(kept: Extracted, reference: Reference) -> Figure:
    """The Fréchet distance with its terms, its jackknife standard error and the value without the bias of order 1/N."""
    dim, count = kept.dim, len(kept)
    whole = moments_of(kept.features, dim)
    distance = distance_to(whole.mean, whole.covariance, reference.mean, reference.root)
    terms = {"mean": distance.mean_term, "covariance": distance.covariance_term}
    if count < 2 * GROUPS:
        return Figure(value=distance.value, estimator="frechet@1", terms=terms)
    groups, left_out = groups_of(count), []
    for group in range(GROUPS):
        rest = without(whole, moments_of(kept.features, dim, groups == group))
        left_out.append(distance_to(rest.mean, rest.covariance, reference.mean, reference.root).value)
    jackknife = Jackknife(distance.value, tuple(left_out))
    return Figure(
        value=jackknife.value, estimator="frechet@1", standard_error=jackknife.standard_error,
        corrected=jackknife.corrected, leave_one_out=jackknife.leave_one_out, terms=terms,
    )  # fmt: skip
