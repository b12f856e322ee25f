"""What `distillkit evaluate` is asked to measure, and with which protocol."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distillkit.contracts.teacher import Teacher
from distillkit.data.config import DataConfig
from distillkit.data.reader import open_files
from distillkit.diffusion.solvers import SolverName
from distillkit.errors import UsageError
from distillkit.evaluation.extractor import FeatureExtractor
from distillkit.evaluation.generator import AUTOCAST, Candidate, GivenImages, student_generator, teacher_generator
from distillkit.evaluation.measure import Measure
from distillkit.evaluation.presets import OwnMeasure, default_protocol, is_reference, load_measure, preset, protocol_for
from distillkit.evaluation.record import Subject
from distillkit.evaluation.reference import Reference
from distillkit.files import existing_parent
from distillkit.jobs.context import Context
from distillkit.jobs.measures import NONE
from distillkit.models.diffusers.folder import is_diffusers_folder
from distillkit.models.store.folder import SPEC
from distillkit.models.store.reference import Folder
from distillkit.models.store.resolve import resolve
from distillkit.runs.config import read_config, validated
from distillkit.runs.folder import CONFIG
from distillkit.students.artifact import DESCRIPTION, Student, load_student
from distillkit.students.checkpoints import STATE, split_selector


@dataclass(frozen=True)
class EvaluationOptions:
    """How to measure.

    Args:
        protocol: its name, or a file of `distillkit reference make`; the run's or the teacher's own by default.
        reference: own statistics in the place of the protocol's: a file, or an object.
        extractor: own extractor: a name, a TorchScript file, or an object.
        samples, first_seed: other samples than the protocol's, which is another protocol.
        nfe: numbers of network evaluations of a sample, a record for each; the subject's own by default.
        metrics: that are computed; the protocol's own by default.
        batch: samples in one pass.
        precision: "fp32", "bf16" or "fp16", of the generator; features are always computed in fp32.
        guidance: weight of a teacher.
        output: file (.json) or folder of the record.
        save_images: folder of PNG files, or a .npz file, where the images are kept as well.
        data_background, data_grey, data_image_column, data_max_pixels, skip_damaged: of given images, as `DataConfig`
            describes them.

    Raises:
        UsageError: for a value that cannot be.
    """

    protocol: str | None = None
    reference: Reference | Path | str | None = None
    extractor: FeatureExtractor | str | None = None
    samples: int | None = None
    first_seed: int = 0
    nfe: Sequence[int] = ()
    metrics: Sequence[str] = ()
    batch: int | None = None
    precision: str = "fp32"
    guidance: float = 1.0
    output: Path | str | None = None
    save_images: Path | str | None = None
    data_background: str | None = None
    data_grey: bool = False
    data_image_column: str | None = None
    data_max_pixels: int | str | None = None
    skip_damaged: int | str = 0

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", *AUTOCAST):
            raise UsageError(f"--precision {self.precision}: fp32, bf16 or fp16")
        least = {"samples": 2, "first_seed": 0, "batch": 1, "guidance": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"--{name.replace('_', '-')} {value}: at least {low}")
        self.images_at(None)
        if small := [nfe for nfe in self.nfe if nfe < 1]:
            raise UsageError(f"--nfe {small[0]}: at least 1")

    def images_at(self, path: str | None) -> DataConfig:
        """How given images are read.

        Raises:
            UsageError: for a value that cannot be.
        """
        asked = {
            "background": self.data_background, "grey": self.data_grey, "image_column": self.data_image_column,
            "max_pixels": self.data_max_pixels, "skip_damaged": self.skip_damaged,
        }  # fmt: skip
        given = {"path": path, **{name: value for name, value in asked.items() if value is not None}}
        return validated(DataConfig, given, None, {"data": given}, ("data",))

    def require_no_images(self, name: str) -> None:
        """Refuse what is said of images where something else is measured.

        Raises:
            UsageError: naming the option.
        """
        plain = EvaluationOptions()
        for option in ("data_background", "data_grey", "data_image_column", "data_max_pixels", "skip_damaged"):
            if getattr(self, option) != getattr(plain, option):
                raise UsageError(f"--{option.replace('_', '-')} is for images, and {name} is a generator")


@dataclass(frozen=True)
class Found:
    """Something to measure, the protocol that it is measured with by default, and where its records go.

    Args:
        shape: of a decoded sample, without the batch, where that is known.
    """

    candidate: Candidate
    protocol: str | None
    folder: Path
    shape: tuple[int, ...] | None = None


def found_subjects(
    subject: str | Path | Student | Teacher, options: EvaluationOptions, context: Context
) -> list[Found]:
    """What `subject` stands for, once for each NFE: a student, a run or one of its checkpoints; images (a folder, zip
    or parquet file); or a teacher.

    Raises:
        UsageError: when it is none of these, or cannot be sampled as asked.
    """
    if isinstance(subject, Student | Teacher):
        options.require_no_images("the subject")
    if isinstance(subject, Student):
        return _students(subject, _student_name(subject), _records(subject.folder), options, context)
    if isinstance(subject, Teacher):
        return _teachers(subject, _records(None), options, context)
    name, path = str(subject), Path(subject).expanduser()
    if is_student(name):
        options.require_no_images(name)
        student, (folder, selector) = load_student(name, say=context.reporter.say), split_selector(name)
        run = folder.resolve().parent if folder.name == "student" else folder
        title = f"{run.name}@{selector}" if selector else run.name
        return _students(student, title, _records(folder), options, context, _protocol_of(run))
    is_model = (path / SPEC).is_file() or is_diffusers_folder(path)
    if not is_model and (path.is_dir() or path.suffix.lower() in (".zip", ".parquet", ".npz")):
        return [_images(name, options)]
    options.require_no_images(name)
    reference = resolve(name)
    records = _records(reference.path if isinstance(reference, Folder) else None)
    return _teachers(reference.load(context.reporter, context.stopped), records, options, context)


def is_student(name: str) -> bool:
    """Whether a name is a run, a checkpoint or a student."""
    path = Path(name).expanduser()
    if not path.exists() and "@" in name:
        path = Path(name.rpartition("@")[0]).expanduser()
    return any((path / part).exists() for part in (DESCRIPTION, f"student/{DESCRIPTION}", "checkpoints", STATE))


def _protocol_of(run: Path) -> str | None:
    """The protocol that a run was asked to be measured under; None where its own folder is not there, or says none."""
    if not (run / CONFIG).is_file():
        return None
    evaluation = read_config(run / CONFIG).values.get("evaluation")
    protocol = evaluation.get("protocol") if isinstance(evaluation, dict) else None
    return protocol if isinstance(protocol, str) and protocol != NONE else None


def _student_name(student: Student) -> str:
    return student.folder.name if student.folder else f"{student.description.method} student"


def _records(folder: Path | None) -> Path:
    """The folder of records beside what is measured, or in the working folder where nothing can be written there."""
    writable = folder is not None and os.access(existing_parent(folder), os.W_OK)
    return folder / "records" if folder is not None and writable else Path("records")


def _students(
    student: Student, name: str, records: Path, options: EvaluationOptions, context: Context, own: str | None = None
) -> list[Found]:
    if options.guidance != 1.0:
        raise UsageError("a student has its guidance learnt in; --guidance is for teachers")
    student, found = student.to(context.device), []
    for nfe in options.nfe or (None,):
        sampled = student if nfe is None or nfe == student.nfe else student.with_nfe(nfe)
        description, codec = sampled.description, sampled.codec
        subject = Subject(
            kind="student", name=name, weights_sha256=description.weights_sha256, teacher=description.teacher.name,
            method=description.method, guidance=description.guidance, precision=options.precision,
            remarks=description.remarks,
        )  # fmt: skip
        shape = codec.decoded_shape(description.shape)
        protocol = own or protocol_for(description.teacher.name, shape, sampled.conditioner.count)
        generator = student_generator(sampled.generator, sampled.conditioner, codec, subject)
        found.append(Found(generator, protocol, records, shape))
    return found


def _teachers(teacher: Teacher, records: Path, options: EvaluationOptions, context: Context) -> list[Found]:
    teacher, solver = teacher.to(context.device), teacher.spec.solver
    steps = [solver_steps(nfe, solver, options.guidance) for nfe in options.nfe] or [teacher.spec.solver_steps]
    shape = teacher.codec.decoded_shape(teacher.spec.shape)
    return [
        Found(
            teacher_generator(teacher, count, options.guidance, precision=options.precision), default_protocol(teacher),
            records, shape,
        )
        for count in steps
    ]  # fmt: skip


MOST = {
    "samples": 10**9,
    "num": 10**8,
    "seed": 2**62,
    "first_seed": 2**62,
    "nfe": 20_000,
    "steps": 10_000,
    "guidance": 10**6,
}
"""The largest numbers that mean something, by the option's name."""


def within_bounds(**given: float | None) -> None:
    """Refuse numbers that no computer gets done with, or that are none.

    Args:
        given: by the option's name, such as first_seed.

    Raises:
        UsageError: naming the option and its bound.
    """
    for name, value in given.items():
        if value is not None and not 0 <= value <= MOST[name]:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} {value:g}: write a number of at most {MOST[name]:,}, and none below 0")


def solver_steps(nfe: int, solver: SolverName, guidance: float = 1.0) -> int:
    """Steps of a solver that take so many evaluations.

    Raises:
        UsageError: where no number of steps does.
    """
    if guidance != 1.0:
        raise UsageError("--nfe counts unguided evaluations; with --guidance leave it out")
    if solver == "heun" and nfe % 2 == 0:
        raise UsageError(f"--nfe {nfe}: Heun's sampler takes an odd number of evaluations, 2 N - 1 for N steps")
    return (nfe + 1) // 2 if solver == "heun" else nfe


def _images(name: str, options: EvaluationOptions) -> Found:
    if options.nfe or options.guidance != 1.0 or options.precision != "fp32":
        raise UsageError(f"{name} holds images: --nfe, --guidance and --precision are for generators")
    config = options.images_at(name)
    files = open_files(config)
    subject = Subject(kind="images", name=Path(name).stem, weights_sha256=files.fingerprint)
    return Found(GivenImages(subject, files, config), None, Path("records"))


def measure_for(found: Found, options: EvaluationOptions) -> Measure:
    """The protocol that was asked for, or the subject's default, on the samples that were asked for.

    Raises:
        UsageError: when there is none, or it does not let itself be changed so.
        DistillkitError: when its files are missing or wrong.
    """
    name, own = options.protocol or found.protocol, options.reference is not None
    if own and not options.protocol and name and (is_reference(name) or isinstance(preset(name), OwnMeasure)):
        name = None
    count = options.samples
    if isinstance(found.candidate, GivenImages):
        if options.first_seed:
            raise UsageError("given images have no seeds: leave --first-seed out")
        count = min(count or len(found.candidate.files), len(found.candidate.files))
    measure = load_measure(
        name, reference=options.reference, extractor=options.extractor, count=count, first_seed=options.first_seed,
        shape=found.shape or (3, 32, 32),
    )  # fmt: skip
    samples = measure.protocol.samples
    if (count is not None and samples.count != count) or samples.first_seed != options.first_seed:
        raise UsageError(
            f"the protocol {measure.protocol.name} always takes its own {samples.count:,} samples: leave --samples and "
            "--first-seed out"
        )
    return measure
