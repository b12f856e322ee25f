"""What `distillkit evaluate` is asked to measure, and with which protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import Teacher, TeacherSpec
from distillkit.data.embedded import makes_digits
from distillkit.data.files import ImageFiles, open_images
from distillkit.errors import UsageError
from distillkit.embedded.mixture.protocol import DensityRuler, density_ruler
from distillkit.evaluation.extractor import FeatureExtractor, torchscript_extractor
from distillkit.evaluation.presets import (
    ProtocolPreset,
    ReferencePreset,
    extractor_by_name,
    preset,
    preset_for,
    ruler_for_preset,
)
from distillkit.evaluation.protocol import SampleSpec
from distillkit.evaluation.record import Subject
from distillkit.evaluation.reference import load_reference
from distillkit.evaluation.sampling import Generate
from distillkit.evaluation.score import Ruler
from distillkit.progress import Reporter
from distillkit.jobs.scores import student_pixels, teacher_pixels
from distillkit.students.artifact import DESCRIPTION, Student, load_student
from distillkit.models.edm.catalog import MIXTURE
from distillkit.models.diffusers.folder import is_diffusers_folder
from distillkit.models.store.folder import is_teacher_folder
from distillkit.models.store.resolve import load_teacher


@dataclass
class Candidate:
    """Something that can be measured: a generator of samples, or given images.

    Args:
        subject: what the record says of it.
        protocol: the name under which a default protocol is looked up.
        folder: where its records go.
    """

    subject: Subject
    protocol: str
    folder: Path
    spec: TeacherSpec | None = None
    denoiser: Denoiser | None = None
    generate: Generate | None = None
    images: ImageFiles | None = None


@dataclass(frozen=True)
class EvaluationOptions:
    """What the user asked for."""

    protocol: str | None = None
    reference: Path | None = None
    extractor: str | None = None
    samples: int | None = None
    first_seed: int = 0
    nfe: Sequence[int] = ()
    metrics: Sequence[str] = ("fd",)
    batch: int = 256
    precision: str = "fp32"
    guidance: float = 1.0
    output: Path | None = None
    save_images: Path | None = None


def candidates(name: str, options: EvaluationOptions, device: torch.device, reporter: Reporter) -> list[Candidate]:
    """What `name` stands for: a student or run folder, images (zip or folder), or a teacher; one for each NFE asked.

    Raises:
        UsageError: when it is none of these, or cannot be sampled in so many evaluations.
    """
    path = Path(name).expanduser()
    if (path / DESCRIPTION).is_file() or (path / "student" / DESCRIPTION).is_file() or (path / "checkpoints").is_dir():
        student = load_student(name).to(device)
        return [_student(student, name, path, options, nfe) for nfe in options.nfe or (None,)]
    is_model = is_teacher_folder(path) or is_diffusers_folder(path)
    if not is_model and (path.is_dir() or path.suffix.lower() in (".zip", ".parquet")):
        return [_images(name)]
    teacher = load_teacher(name, reporter).to(device)
    steps = [_heun_steps(nfe, options.guidance) for nfe in options.nfe] or [teacher.spec.solver_steps]
    return [_teacher(teacher, count, options) for count in steps]


def _student(student: Student, name: str, path: Path, options: EvaluationOptions, nfe: int | None) -> Candidate:
    description, generator = student.description, student.generator
    sampler = generator.sampler
    if nfe is not None and nfe != description.nfe:
        try:
            sampler = sampler.with_nfe(nfe)
        except ValueError as error:
            raise UsageError(
                f"{name} is sampled in {description.nfe:g} evaluation(s), not in {nfe}: {error}"
            ) from error
    if options.guidance != 1.0:
        raise UsageError("a student has its guidance learnt in; --guidance is for teachers")
    subject = Subject(
        kind="student", name=path.name if path.name != "student" else path.resolve().parent.name,
        weights_sha256=description.weights_sha256, teacher=description.teacher.name, method=description.method,
        sampler=sampler.model_dump(mode="json"), guidance=description.guidance, precision=options.precision,
        trained_with_lpips=description.settings.get("distance") == "lpips",
    )  # fmt: skip
    generator = StudentGenerator(generator.denoiser, sampler, generator.spec)
    generate = student_pixels(generator, Teacher(generator.denoiser, generator.spec))
    return Candidate(subject, description.teacher.name, path / "records", generator.spec, generator.denoiser, generate)


def _teacher(teacher: Teacher, steps: int, options: EvaluationOptions) -> Candidate:
    spec, steps_said = teacher.spec, f"{steps} Heun step{'' if steps == 1 else 's'}"
    subject = Subject(
        kind="teacher", name=f"{spec.name}, {steps_said}", weights_sha256=spec.weights_sha256, teacher=spec.name,
        sampler={"kind": "heun", "steps": steps}, guidance=options.guidance, precision=options.precision,
    )  # fmt: skip
    generate = teacher_pixels(teacher, steps, options.guidance)
    return Candidate(subject, spec.name, Path("records"), spec, teacher.denoiser, generate)


def _images(name: str) -> Candidate:
    files = open_images(name)
    subject = Subject(kind="images", name=Path(name).stem, weights_sha256=files.fingerprint)
    return Candidate(subject, "", Path("records"), images=files)


def _heun_steps(nfe: int, guidance: float) -> int:
    if nfe < 1 or nfe % 2 == 0:
        raise UsageError(f"--nfe {nfe}: Heun's sampler takes an odd number of evaluations, 2 N - 1 for N steps")
    if guidance != 1.0:
        raise UsageError("--nfe counts unguided evaluations; with --guidance leave it out")
    return (nfe + 1) // 2


def ruler_for(candidate: Candidate, options: EvaluationOptions) -> tuple[Ruler | DensityRuler, ProtocolPreset | None]:
    """The protocol that was asked for, or the one that fits the candidate's teacher.

    Raises:
        UsageError: when there is none.
        DistillkitError: when its files are missing or wrong.
    """
    if candidate.spec is not None and candidate.spec.shape == MIXTURE.spec.shape:
        if options.protocol or options.reference or options.extractor or options.samples:
            raise UsageError(
                "points are measured against the mixture itself, on a grid of cells: leave --protocol, --reference, "
                "--extractor and --samples out"
            )
        return density_ruler(), None
    chosen = preset(options.protocol) if options.protocol else preset_for(candidate.protocol)
    if chosen is None and candidate.spec is not None and makes_digits(candidate.spec):
        chosen = preset("digits8")
    shape = candidate.spec.shape if candidate.spec else None
    extractor = extractor_for(options.extractor, shape) if options.extractor else None
    reference = load_reference(options.reference) if options.reference else None
    if chosen is None:
        if reference is None or extractor is None:
            raise UsageError(
                "no protocol is known for this; name one (--protocol, see `distillkit protocols`), or give both "
                "--reference and --extractor"
            )
        chosen = ProtocolPreset(
            name="own", title="", extractor=str(options.extractor), count=10_000, labels="index mod classes",
            reference=ReferencePreset(id=reference.id, count=reference.count),
        )  # fmt: skip
    count = options.samples
    if candidate.images is not None:
        count = min(count or len(candidate.images), len(candidate.images))
    ruler = ruler_for_preset(
        chosen, count=count, first_seed=options.first_seed, reference=reference, extractor=extractor
    )
    protocol = ruler.protocol
    if candidate.images is not None:
        given = SampleSpec(
            count=protocol.samples.count, rng="given images", noise="none", labels="none", quantise="given",
            prepare=protocol.samples.prepare,
        )  # fmt: skip
        protocol = protocol.model_copy(update={"samples": given})
    elif candidate.spec is not None and not candidate.spec.num_classes:
        protocol = protocol.model_copy(update={"samples": protocol.samples.model_copy(update={"labels": "none"})})
    return Ruler(protocol, ruler.extractor, ruler.reference), chosen


def extractor_for(name: str, shape: tuple[int, int, int] | None) -> FeatureExtractor:
    """An extractor by name, or a TorchScript file."""
    if Path(name).suffix in (".pt", ".pth", ".ts"):
        return torchscript_extractor(Path(name).expanduser(), shape or (3, 32, 32))
    return extractor_by_name(name)
