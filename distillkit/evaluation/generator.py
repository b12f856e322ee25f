"""What is measured: generators of samples, and images that are given."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from pydantic import BaseModel
from torch import Tensor

from distillkit.contracts.codec import Codec, Content
from distillkit.contracts.condition import Condition
from distillkit.contracts.conditioner import Conditioner
from distillkit.contracts.denoiser import Denoiser, all_uncompiled
from distillkit.contracts.guide import Guide
from distillkit.contracts.random import SampleRNG
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher, guidance_title
from distillkit.data.config import DataConfig
from distillkit.data.files import ImageFiles
from distillkit.data.identity import guide_identity
from distillkit.data.reader import ImageReader, pixels_in_order
from distillkit.diffusion.solvers import SolverName
from distillkit.dtypes import HALF
from distillkit.errors import DistillkitError
from distillkit.evaluation.measure import Measure
from distillkit.evaluation.protocol import SampleSpec
from distillkit.evaluation.record import Subject
from distillkit.evaluation.sampling import Tally, chooses_kernels, inputs, require_content
from distillkit.models.counting import count_evaluations
from distillkit.models.hashes import content_hash
from distillkit.registry import registry
from distillkit.weights import weight_types

Generate = Callable[[Tensor, Condition, list[int]], Tensor]
"""(noise (B, ...), condition, seeds) -> decoded samples (B, ...)."""


class Candidate(Protocol):
    """Something that can be measured."""

    @property
    def subject(self) -> Subject: ...

    @property
    def content(self) -> Content: ...

    def samples_of(self, spec: SampleSpec) -> SampleSpec:
        """Which samples it gives where a protocol asks for `spec`."""

    def identity(self) -> Mapping[str, Any]:
        """Everything that its samples depend on, besides noise and conditions; what is cached is found by it."""

    def draw(self, measure: Measure, batches: Sequence[range], device: torch.device, tally: Tally) -> Iterator[Tensor]:
        """The decoded samples at the indices of `batches`; keeps `tally`."""


@dataclass(frozen=True)
class Generator:
    """A generator of samples.

    Args:
        subject: what the record says of it.
        generate: from noise, conditions and seeds to decoded samples.
        denoiser: its network, whose evaluations are counted.
        shape: of its noise, without the batch.
        guide: a second network that is evaluated with it.
        quick: as `generate` in fewer steps, whatever the samples are; itself if none.
    """

    subject: Subject
    generate: Generate
    denoiser: Denoiser
    conditioner: Conditioner
    codec: Codec
    shape: tuple[int, ...]
    guide: Guide | None = None
    quick: Generate | None = None

    @property
    def denoisers(self) -> tuple[Denoiser, ...]:
        """All networks that are evaluated."""
        return (self.denoiser,) if self.guide is None else (self.denoiser, self.guide.denoiser)

    @property
    def content(self) -> Content:
        return self.codec.content

    def samples_of(self, spec: SampleSpec) -> SampleSpec:
        labels = spec.labels if spec.labels != "none" else "index mod classes"
        return spec.model_copy(update={"labels": labels if self.conditioner.count else "none"})

    def identity(self) -> Mapping[str, Any]:
        subject, schedule = self.subject, self.denoiser.schedule
        rounded = {"rounded to": self.conditioner.rounded_to} if self.conditioner.rounded_to else {}
        return {
            "weights": subject.weights_sha256 or content_hash(self.denoiser.state_dict()),
            "network": dict(self.denoiser.description or {}) or _class_name(self.denoiser),
            "schedule": {"class": _class_name(schedule), **schedule.model_dump(mode="json")},
            "conditioner": {**described("conditioners", self.conditioner), **rounded},
            "codec": described("codecs", self.codec),
            "shape": list(self.shape),
            "sampler": subject.sampler,
            "guidance": subject.guidance,
            "precision": subject.precision,
            **({"weights in": lower} if (lower := _lower_types(self.denoiser)) else {}),
            **({"guide": guide_identity(self.guide)} if self.guide else {}),
        }

    @torch.inference_mode()
    def draw(self, measure: Measure, batches: Sequence[range], device: torch.device, tally: Tally) -> Iterator[Tensor]:
        prompts = self.conditioner.parse(measure.prompts) if measure.prompts else None
        before, single = tally.evaluations, len(batches) == 1
        with self.denoiser.uneven(), count_evaluations(*self.denoisers) as evaluations, self.eager():
            for batch in batches:
                noise, keys, seeds = inputs(measure.protocol.samples, batch, self.shape, self.conditioner, prompts)
                noise, condition = noise.to(device), self.conditioner.encode(keys).to(device)
                if single:
                    made = evaluations()
                    self.warm_up(noise, condition, seeds)
                    before -= evaluations() - made
                began = time.perf_counter()
                with self._precision(device):
                    decoded = self.generate(noise, condition, seeds)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                # The first batch pays for one-time set-up; it counts only if there is no other.
                timed = batch != batches[0] or single
                tally.add(len(seeds), time.perf_counter() - began, timed=timed)
                tally.evaluations = before + evaluations()
                yield require_content(decoded, self.content)

    def eager(self) -> contextlib.AbstractContextManager[None]:
        """Passes without torch.compile's graphs: those that a training has are of its own sizes, and making others
        would be taken for the time of samples."""
        return all_uncompiled(self.denoisers)

    @torch.inference_mode()
    def warm_up(self, noise: Tensor, condition: Condition, seeds: list[int]) -> None:
        """Samples of this size in as few steps as can be, for a GPU to load and choose its kernels; nothing on a CPU,
        which does not do so."""
        if chooses_kernels(noise.device):
            with self._precision(noise.device):
                (self.quick or self.generate)(noise, condition, seeds)

    def _precision(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        dtype = HALF.get(self.subject.precision)
        return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def student_generator(student: StudentGenerator, conditioner: Conditioner, codec: Codec, subject: Subject) -> Generator:
    """A student as what is measured; its fresh noise between evaluations depends on the samples' seeds."""

    def generate(noise: Tensor, condition: Condition, seeds: list[int]) -> Tensor:
        def renoise(k: int) -> Tensor:
            return SampleRNG(0).normal(f"renoise/{k}", 0, seeds, noise.shape[1:]).to(noise.device)

        return codec.decode(_finite(student(noise, condition, renoise), subject))

    subject = subject.model_copy(update={"sampler": described("samplers", student.sampler)})
    return Generator(subject, generate, student.denoiser, conditioner, codec, student.shape)


def teacher_generator(
    teacher: Teacher, steps: int | None = None, guidance: float = 1.0, solver: SolverName | None = None,
    precision: str = "fp32",
) -> Generator:  # fmt: skip
    """A teacher with its solver as what is measured.

    Args:
        steps, solver: the teacher's own where None.
        guidance: its weight.
        precision: "fp32", "bf16" or "fp16", of the network.
    """
    spec = teacher.spec
    steps, solver = steps or spec.solver_steps, solver or spec.solver
    guide = teacher.guide if guidance != 1 else None
    subject = Subject(
        kind="teacher", name=f"{spec.name}, {sampling_title(solver, steps, guidance, teacher)}",
        weights_sha256=spec.weights_sha256 or content_hash(teacher.denoiser.state_dict()), teacher=spec.name,
        sampler={"kind": solver, "steps": steps}, guidance=guidance, guide=guide.facts if guide else None,
        precision=precision,
        remarks=(f"its weights were in {', '.join(lower)}",) if (lower := _lower_types(teacher.denoiser)) else (),
    )  # fmt: skip

    def generate(noise: Tensor, condition: Condition, seeds: list[int]) -> Tensor:
        made = teacher.sample(noise, condition, steps=steps, solver=solver, guidance=guidance)
        return teacher.codec.decode(_finite(made, subject))

    def quick(noise: Tensor, condition: Condition, seeds: list[int]) -> Tensor:
        return teacher.codec.decode(teacher.sample(noise, condition, steps=1, solver=solver, guidance=guidance))

    return Generator(
        subject, generate, teacher.denoiser, teacher.conditioner, teacher.codec, teacher.spec.shape, guide, quick
    )


def _lower_types(denoiser: Denoiser) -> list[str]:
    """Types of weights where they are not all float32, which goes without saying."""
    found = [kind.removeprefix("torch.") for kind in weight_types(denoiser)]
    return [] if found in ([], ["float32"]) else found


def sampling_title(solver: SolverName, steps: int, guidance: float = 1.0, teacher: Teacher | None = None) -> str:
    """How a teacher is sampled, for people: '18 Heun steps', '50 DDIM steps, guidance 3'."""
    title = {"heun": "Heun", "euler": "Euler", "ddim": "DDIM"}[solver]
    guided = "" if guidance == 1 else f", {guidance_title(guidance, teacher)}"
    return f"{steps} {title} step{'' if steps == 1 else 's'}{guided}"


def described(kind: str, part: BaseModel) -> dict[str, Any]:
    """A sampler, conditioner or codec as data: its description, or its class and fields where no plugin offers it."""
    return registry().describe(kind, part) or {"class": _class_name(part), **part.model_dump(mode="json")}


def _class_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _finite(samples: Tensor, subject: Subject) -> Tensor:
    # Decoding would turn NaN into black without a word.
    if not torch.isfinite(samples).all():
        raise DistillkitError(f"{subject.name or subject.kind} gives NaN or infinity instead of samples")
    return samples


@dataclass(frozen=True)
class GivenImages:
    """Images of a folder, a zip or a parquet file, which are measured as they are."""

    subject: Subject
    files: ImageFiles
    config: DataConfig
    _readers: dict[str, ImageReader] = field(default_factory=dict, repr=False, compare=False)

    @property
    def content(self) -> Content:
        return "images"

    def reader(self, measure: Measure) -> ImageReader:
        """The images as a protocol prepares them.

        Raises:
            UsageError, DistillkitError: as `ImageReader`.
        """
        preparation = measure.preparation
        config = self.config
        if preparation:
            config = config.model_copy(update={"resolution": preparation.resolution, "filter": preparation.filter})
        key = config.model_dump_json()
        if key not in self._readers:
            self._readers[key] = ImageReader(config, self.files)
        return self._readers[key]

    def samples_of(self, spec: SampleSpec) -> SampleSpec:
        return SampleSpec(
            count=min(spec.count, len(self.files)), rng="given images", noise="none", labels="none", quantise="given",
            prepare=spec.prepare, prompts_sha256=spec.prompts_sha256,
        )  # fmt: skip

    def identity(self) -> Mapping[str, Any]:
        return {"images": self.files.fingerprint, "background": self.config.background, "grey": self.config.grey}

    def draw(self, measure: Measure, batches: Sequence[range], device: torch.device, tally: Tally) -> Iterator[Tensor]:
        for pixels in pixels_in_order(self.reader(measure), batches):
            tally.samples += len(pixels)
            yield require_content(pixels.to(device), "images")
