"""Measures: a loaded protocol, which turns the features of samples into figures."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distillkit.contracts.conditioner import Conditioner
from distillkit.contracts.text import prompts_sha256
from distillkit.data.decoding import centred
from distillkit.errors import UsageError
from distillkit.evaluation.clip import Clip, clip_figure
from distillkit.evaluation.extractor import FeatureExtractor
from distillkit.evaluation.features import GROUPS, Kept, groups_of, moments_of
from distillkit.evaluation.frechet import Jackknife, distance_to, without
from distillkit.evaluation.kernel import inception_jackknife, kernel_distance
from distillkit.evaluation.neighbours import manifolds, memorisation
from distillkit.evaluation.protocol import (
    EstimatorSpec,
    ImagePreparation,
    Protocol,
    ReferenceSpec,
    SampleSpec,
    clip_label,
)
from distillkit.evaluation.record import Figure
from distillkit.evaluation.reference import Reference
from distillkit.models.prompts import Prompts


class Measure(ABC):
    """A protocol with what it needs to be applied. A plugin offers its own by the hook `distillkit_protocols`.

    Attributes:
        batch: samples that are generated in one pass, where nothing else is asked for.
        metrics: names of the metrics that it has, its own first.

    Args:
        protocol: everything that can change its figures.
        extractor: the network that the protocol names.
        preparation: what is done to images before the extractor, generated ones and those of the reference alike.
        prompts: the protocol's own; conditions are made of them, in turn.
    """

    batch: ClassVar[int] = 500
    metrics: ClassVar[tuple[str, ...]] = ("fd",)

    def __init__(
        self, protocol: Protocol, extractor: FeatureExtractor, *, preparation: ImagePreparation | None = None,
        prompts: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.protocol, self.extractor = protocol, extractor
        self.preparation, self.prompts = preparation, prompts

    def to(self, device: torch.device) -> Self:
        """Compute on this device from now on; itself."""
        self.extractor.to(device)
        return self

    def prepared(self, decoded: Tensor) -> Tensor:
        """Images (B, C, H, W) uint8 cropped and resized as the protocol says; those of its size stay as they are."""
        wanted = self.preparation
        if wanted is None or decoded.ndim != 4 or decoded.shape[-2:] == (wanted.resolution,) * 2:
            return decoded
        made = []
        for pixels in decoded.permute(0, 2, 3, 1).cpu().numpy():
            image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
            resized = np.asarray(centred(image, wanted.resolution, wanted.filter))
            made.append(resized.reshape(wanted.resolution, wanted.resolution, -1))
        return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).to(decoded.device)

    def rows(self, decoded: Tensor, metrics: Sequence[str]) -> Tensor:
        """What is kept (B, row) of decoded samples (B, ...), prepared already."""
        if self.row(metrics) == self.extractor.spec.dim:
            return self.extractor(decoded)
        return torch.cat(self.extractor.with_probabilities(decoded), dim=1)

    @property
    def count(self) -> int:
        """Samples that the protocol takes."""
        return self.protocol.samples.count

    @abstractmethod
    def figures(self, kept: Kept, metrics: Sequence[str]) -> tuple[dict[str, Figure], list[str]]:
        """All figures of the features that were kept, the protocol's own under its label, and remarks beside them.

        Raises:
            UsageError: for a metric that needs what is not there.
        """

    def row(self, metrics: Sequence[str]) -> int:
        """Numbers that are kept of a sample: its features, and class probabilities behind them where a metric needs
        them.

        Raises:
            UsageError: for a metric that is unknown or that the extractor cannot serve.
        """
        if unknown := [metric for metric in metrics if metric not in self.metrics]:
            raise UsageError(f"unknown metric {unknown[0]!r}; {self.protocol.name} has {', '.join(self.metrics)}")
        return self.extractor.spec.dim

    def with_protocol(self, protocol: Protocol) -> Self:
        """The same with another protocol of the same extractor and reference."""
        other = copy.copy(self)
        other.protocol = protocol
        return other

    def with_prompts(self, prompts: Sequence[str]) -> Self:
        """The same on other prompts, which is another protocol."""
        samples = self.protocol.samples.model_copy(update={"prompts_sha256": prompts_sha256(prompts)})
        other = self.with_protocol(self.protocol.model_copy(update={"samples": samples}))
        other.prompts = prompts
        return other

    def with_samples(self, count: int | None = None, first_seed: int | None = None) -> Self:
        """The same on another number of samples or other seeds, which is another protocol; None leaves them."""
        given = {"count": count, "first_seed": first_seed}
        samples = self.protocol.samples.model_copy(update={k: v for k, v in given.items() if v is not None})
        return self.with_protocol(self.protocol.model_copy(update={"samples": samples}))


class FrechetMeasure(Measure):
    """The Fréchet distance between features of samples and of a reference, and what else the same features show.

    Metrics: fd, the Fréchet distance; kid, the kernel distance; prdc: precision, recall, density and coverage; is, the
    Inception score; memorisation, distances to the nearest neighbour; clip, how images fit their prompts.

    Args:
        reference: the statistics that the protocol names.
        clip: by which images are also compared with their prompts.
    """

    metrics: ClassVar[tuple[str, ...]] = ("fd", "kid", "prdc", "is", "memorisation", "clip")

    def __init__(
        self, protocol: Protocol, extractor: FeatureExtractor, reference: Reference, *,
        preparation: ImagePreparation | None = None, prompts: Sequence[str] = (), clip: Clip | None = None,
    ) -> None:  # fmt: skip
        super().__init__(protocol, extractor, preparation=preparation, prompts=prompts)
        self.reference, self.clip = reference, clip

    def to(self, device: torch.device) -> Self:
        if self.clip:
            self.clip.to(device)
        return super().to(device)

    def rows(self, decoded: Tensor, metrics: Sequence[str]) -> Tensor:
        """Features, class probabilities where they are needed, and CLIP's embeddings."""
        parts = [*self.extractor.with_probabilities(decoded)] if "is" in metrics else [self.extractor(decoded)]
        if self.clip and "clip" in metrics:
            parts.append(self.clip(decoded))
        return torch.cat(parts, dim=1)

    def row(self, metrics: Sequence[str]) -> int:
        dim = super().row(metrics)
        if "is" in metrics and not self.extractor.classes:
            raise UsageError(f"the metric 'is' needs class probabilities, and {self.extractor.spec.id} has none")
        if self._beside(metrics) and self.reference.features is None:
            raise UsageError(
                f"{', '.join(self._beside(metrics))} need the reference's features, and {self.reference.id} has "
                "moments only; make a reference with `distillkit reference make --keep-features`"
            )
        if "clip" in metrics and self.clip is None:
            raise UsageError("the metric 'clip' needs a model: --clip FOLDER or hf:ORG/REPO")
        embedded = self.clip.spec.dim if self.clip and "clip" in metrics else 0
        return dim + (self.extractor.classes if "is" in metrics else 0) + embedded

    @staticmethod
    def _beside(metrics: Sequence[str]) -> list[str]:
        return [metric for metric in metrics if metric not in ("fd", "is", "clip")]

    def figures(self, kept: Kept, metrics: Sequence[str]) -> tuple[dict[str, Figure], list[str]]:
        figures, remarks = {self.protocol.label: frechet_figure(kept, self.reference)}, []
        count, dim, name = len(kept), kept.dim, self.extractor.spec.id
        if count <= dim:
            remarks.append(
                f"{count:,} samples span at most {count - 1:,} of {dim:,} dimensions: the covariance is singular and "
                "the distance strongly biased"
            )
        groups = groups_of(count) if count >= 2 * GROUPS else None
        if self._beside(metrics) and (real := self.reference.features) is not None:
            generated, n = kept.features, f"{count}/{len(real)}"
            if "kid" in metrics:
                found = kernel_distance(generated, real, groups)
                figures[f"KD[{name}]-{n}"] = _figure(found, "kernel-cubic-full@1")
            if "prdc" in metrics:
                for key, share in manifolds(generated, real, groups=groups).items():
                    figures[f"{key}[{name}]-{n}"] = _figure(share, "neighbours-k3@1")
            if "memorisation" in metrics:
                figures[f"memorisation[{name}]-{n}"] = _figure(memorisation(generated, real, groups), "nearest@1")
        if "is" in metrics:
            probabilities = kept.probabilities[:, : self.extractor.classes]
            figures[f"IS[{name}]-{count}"] = _figure(inception_jackknife(probabilities, groups), "one split@1")
        if "clip" in metrics and self.clip:
            embeddings = kept.rows.all()[:, -self.clip.spec.dim :]
            figures[clip_label(self.clip.spec, count)] = clip_figure(embeddings, self.clip, self.prompts)
        return figures, remarks


class ClipMeasure(Measure):
    """The CLIP score alone, which needs no reference."""

    metrics: ClassVar[tuple[str, ...]] = ("clip",)

    def __init__(self, clip: Clip, *, count: int = 10_000, first_seed: int = 0) -> None:
        protocol = Protocol(
            name=f"clip-{clip.spec.id.partition('/')[0]}", extractor=clip.spec,
            samples=SampleSpec(count=count, first_seed=first_seed),
            reference=ReferenceSpec(id="the samples' prompts", sha256=prompts_sha256(()), count=2),
            estimator=EstimatorSpec(metric="clip"),
        )  # fmt: skip
        super().__init__(protocol, clip)
        self.clip = clip

    def figures(self, kept: Kept, metrics: Sequence[str]) -> tuple[dict[str, Figure], list[str]]:
        return {self.protocol.label: clip_figure(kept.features, self.clip, self.prompts)}, []


def _figure(found: Jackknife, estimator: str) -> Figure:
    """A figure with its standard error. The bias is left in: these are shares and unbiased estimates, or (the Inception
    score) known by its biased value."""
    error = found.standard_error if found.leave_one_out else None
    return Figure(value=found.value, estimator=estimator, standard_error=error, leave_one_out=found.leave_one_out)


def frechet_figure(kept: Kept, reference: Reference) -> Figure:
    """The Fréchet distance with its terms, its jackknife standard error and the value without the bias of order 1/N."""
    dim, count = kept.dim, len(kept)
    whole = moments_of(kept.rows, dim)
    distance = distance_to(whole.mean, whole.covariance, reference.mean, reference.root)
    terms = {"mean": distance.mean_term, "covariance": distance.covariance_term}
    if count < 2 * GROUPS:
        return Figure(value=distance.value, estimator="frechet@1", terms=terms)
    groups, left_out = groups_of(count), []
    for group in range(GROUPS):
        rest = without(whole, moments_of(kept.rows, dim, groups == group))
        left_out.append(distance_to(rest.mean, rest.covariance, reference.mean, reference.root).value)
    jackknife = Jackknife(distance.value, tuple(left_out))
    return Figure(
        value=jackknife.value, estimator="frechet@1", standard_error=jackknife.standard_error,
        corrected=jackknife.corrected, leave_one_out=jackknife.leave_one_out, terms=terms,
    )  # fmt: skip


def with_examples(measure: Measure, conditioner: Conditioner) -> Measure:
    """The measure on the examples of a model of text, where it has no prompts of its own: which prompts they were is
    then part of the protocol, too.

    Raises:
        UsageError: where the model has none either.
    """
    if measure.prompts or not isinstance(conditioner, Prompts):
        return measure
    if not any(conditioner.examples):
        raise UsageError("pictures of text are measured on prompts: --prompts FILE, or a protocol with prompts")
    return measure.with_prompts(conditioner.examples)
