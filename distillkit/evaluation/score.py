"""A quick score while training: generate, extract, and the Fréchet distance from streaming moments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from accelerate.utils import gather_object

from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.teacher import TeacherSpec
from distillkit.evaluation.extractor import FeatureExtractor
from distillkit.evaluation.frechet import distance_to
from distillkit.evaluation.moments import Moments
from distillkit.evaluation.protocol import Protocol
from distillkit.evaluation.reference import Reference
from distillkit.evaluation.sampling import Generate, Tally, sampled


@dataclass(frozen=True)
class Score:
    """One figure, the sum of its terms. `nfe` is measured; images/s counts generation alone, on this machine, at this
    batch size."""

    terms: Mapping[str, float]
    nfe: float
    images_per_second: float
    protocol_id: str
    label: str
    count: int

    @property
    def value(self) -> float:
        return sum(self.terms.values())


@dataclass(frozen=True)
class Ruler:
    """A protocol with the extractor and reference that it names."""

    protocol: Protocol
    extractor: FeatureExtractor
    reference: Reference

    def score(
        self, generate: Generate, denoiser: Denoiser, spec: TeacherSpec, device: torch.device, *, batch: int = 500,
        rank: int = 0, world: int = 1, advance: Callable[[int], None] = lambda n: None,
    ) -> Score:  # fmt: skip
        """Generate the protocol's samples and measure their distance to the reference.

        Processes share the batches; every process returns the same score.

        Args:
            generate: the generator under test.
            denoiser: its network, whose evaluations are counted.
        """
        protocol, dim = self.protocol, self.protocol.extractor.dim
        count = protocol.samples.count
        moments, tally = Moments(dim), Tally()
        extractor = self.extractor.to(device)
        batches = [range(start, min(start + batch, count)) for start in range(0, count, batch)][rank::world]
        for indices, pixels in sampled(generate, denoiser, spec, protocol.samples, device, batches, tally):
            with torch.inference_mode():
                moments.add(extractor(pixels))
            advance(len(indices))
        moments.finish()
        nfe, speed = tally.nfe, tally.images_per_second
        if world > 1:
            parts = gather_object([(moments.count, moments.mean, moments.scatter, tally)])
            moments = Moments(dim)
            for n, mean, scatter, _ in parts:
                part = Moments(dim)
                part.count, part.mean, part.scatter = n, mean, scatter
                moments.merge(part)
            nfe = sum(part[3].evaluations for part in parts) / count
            speed = sum(p[3].timed_samples for p in parts) / max(1e-9, *(p[3].seconds for p in parts))
        distance = distance_to(moments.mean, moments.covariance, self.reference.mean, self.reference.root)
        return Score(asdict(distance), nfe, speed, protocol.id, protocol.label, count)
